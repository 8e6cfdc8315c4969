"""The UNet of latent diffusion models (Rombach et al., CVPR 2022), small and plain.

Written from its definition for the tests: the reference for what `stages.depthfm` loads and the
source of checkpoints, as its `state_dict()` has the names of the published files. Spatial
transformers with plain attention, no class labels; any floating-point type.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def time_features(t: Tensor, width: int) -> Tensor:
    """(N,) times -> (N, width): cosines, then sines, of geometrically falling frequencies."""
    index = torch.arange(width // 2, dtype=t.dtype)
    angles = t[:, None] * torch.exp(-math.log(10000) * index / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    def __init__(self, wide_in: int, wide: int, wide_time: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, wide_in), nn.SiLU(), nn.Conv2d(wide_in, wide, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(wide_time, wide))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, wide), nn.SiLU(), nn.Identity(), nn.Conv2d(wide, wide, 3, padding=1)
        )
        same = wide_in == wide
        self.skip_connection = nn.Identity() if same else nn.Conv2d(wide_in, wide, 1)

    def forward(self, x: Tensor, time: Tensor, _: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    def __init__(self, wide: int, wide_context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(wide, wide, bias=False)
        self.to_k = nn.Linear(wide_context, wide, bias=False)
        self.to_v = nn.Linear(wide_context, wide, bias=False)
        self.to_out = nn.Sequential(nn.Linear(wide, wide))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1))
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        similarity = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("nhqk,nkhd->nqhd", similarity.softmax(dim=-1), v)
        return self.to_out(mixed.flatten(2))


class Gated(nn.Module):
    def __init__(self, wide: int, wide_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(wide, 2 * wide_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


class Block(nn.Module):
    def __init__(self, wide: int, wide_context: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(wide) for _ in range(3))
        self.attn1 = Attention(wide, wide, heads)
        self.attn2 = Attention(wide, wide_context, heads)
        feed_forward = nn.Sequential(
            Gated(wide, 4 * wide), nn.Identity(), nn.Linear(4 * wide, wide)
        )
        self.ff = nn.ModuleDict({"net": feed_forward})

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(y := self.norm1(x), y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff["net"](self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, wide: int, wide_context: int, heads: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(32, wide, eps=1e-6)
        self.proj_in = nn.Linear(wide, wide) if linear else nn.Conv2d(wide, wide, 1)
        self.transformer_blocks = nn.ModuleList([Block(wide, wide_context, heads)])
        self.proj_out = nn.Linear(wide, wide) if linear else nn.Conv2d(wide, wide, 1)

    def forward(self, x: Tensor, _: Tensor, context: Tensor) -> Tensor:
        def tokens(y: Tensor) -> Tensor:
            return y.flatten(2).mT

        def pixels(y: Tensor) -> Tensor:
            return y.mT.unflatten(2, x.shape[2:])

        h = self.norm(x)
        h = self.proj_in(tokens(h)) if self.linear else tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + (pixels(self.proj_out(h)) if self.linear else self.proj_out(pixels(h)))


class Down(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(wide, wide, 3, stride=2, padding=1)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class First(nn.Conv2d):
    def forward(self, x: Tensor, *_: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Layers(nn.ModuleList):
    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time, context)
        return x


class LdmUNet(nn.Module):
    """Arguments as in a checkpoint's `ldm_hparams`; those that matter only in training ignored."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        context_dim: int,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_linear_in_transformer: bool = False,
        **_: object,
    ) -> None:
        super().__init__()
        self.width = model_channels
        wide_time = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, wide_time), nn.SiLU(), nn.Linear(wide_time, wide_time)
        )

        def attention(wide: int) -> Transformer:
            heads = num_heads if num_head_channels == -1 else wide // num_head_channels
            return Transformer(wide, context_dim, heads, use_linear_in_transformer)

        wide = model_channels
        blocks: list[list[nn.Module]] = [[First(in_channels, wide, 3, padding=1)]]
        skips = [wide]
        for level, factor in enumerate(channel_mult):
            attends = 2**level in attention_resolutions
            for _i in range(num_res_blocks):
                block: list[nn.Module] = [Residual(wide, factor * model_channels, wide_time)]
                wide = factor * model_channels
                blocks.append(block + [attention(wide)] * attends)
                skips.append(wide)
            if level < len(channel_mult) - 1:
                blocks.append([Down(wide)])
                skips.append(wide)
        self.input_blocks = nn.ModuleList(map(Layers, blocks))

        middle = [Residual(wide, wide, wide_time), attention(wide), Residual(wide, wide, wide_time)]
        self.middle_block = Layers(middle)

        blocks = []
        for level, factor in reversed(list(enumerate(channel_mult))):
            attends = 2**level in attention_resolutions
            for i in range(num_res_blocks + 1):
                block = [Residual(wide + skips.pop(), factor * model_channels, wide_time)]
                wide = factor * model_channels
                last = level > 0 and i == num_res_blocks
                blocks.append(block + [attention(wide)] * attends + [Up(wide)] * last)
        self.output_blocks = nn.ModuleList(map(Layers, blocks))
        self.out = nn.Sequential(
            nn.GroupNorm(32, wide), nn.SiLU(), nn.Conv2d(wide, out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """(B, in_channels, H, W), (B,) in [0, 1], (B, tokens, context_dim) -> (B, out, H, W)."""
        time = self.time_embed(time_features(t, self.width))
        skips = []
        for block in self.input_blocks:
            x = block(x, time, context)
            skips.append(x)
        x = self.middle_block(x, time, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), time, context)
        return self.out(x)
