"""Blocks of CLIP's transformers with fewer and faster kernels, the same function.

open_clip's block asks for as many kernels again as its products need: its attention transposes the
batch, and the projection of the transposed pictures by constant weights becomes one small product
for each token; norms are computed in float32 between two casts; QuickGELU is three kernels forward
and five backward. In float32 the results here are the same bits, in half precision they differ by
rounding.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)
SLOPE = 1.702  # of QuickGELU's sigmoid


def lean_blocks(network: nn.Module) -> None:
    """Let open_clip's own blocks in a network compute as here; others stay as they are."""
    for module in network.modules():
        if type(module) is ResidualAttentionBlock and _is_plain(module):
            module.__class__ = _Block
        elif type(module) is QuickGELU:
            module.__class__ = _QuickGELU


def _is_plain(block: ResidualAttentionBlock) -> bool:
    attention = block.attn
    norms = all(isinstance(norm, LayerNorm | LayerNormFp32) for norm in (block.ln_1, block.ln_2))
    packed = attention.in_proj_weight is not None and attention.bias_k is None
    alone = attention.batch_first and not attention.dropout and not hasattr(block, "ln_1_kv")
    return norms and packed and alone


class _Block(ResidualAttentionBlock):  # type: ignore[misc]
    def forward(
        self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        attended = _attention(self.attn, _norm(self.ln_1, q_x), attn_mask)
        x = q_x + self.ls_1(attended)
        y: Tensor = x + self.ls_2(self.mlp(_norm(self.ln_2, x)))
        return y


def _attention(layer: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Self-attention of x (n, length, width), without a copy of queries, keys and values."""
    n, length, width = x.shape
    projected = F.linear(x, layer.in_proj_weight, layer.in_proj_bias)
    heads = projected.view(n, length, 3, layer.num_heads, -1).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in heads)
    mask = None if mask is None else mask.to(q.dtype)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    found: Tensor = layer.out_proj(y.transpose(1, 2).reshape(n, length, width))
    return found


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """In the precision of x and of the weights if that is one; sums are in float32 all the same."""
    same = x.dtype == norm.weight.dtype
    # Autocast would cast what comes and what goes to float32.
    with torch.autocast(x.device.type, enabled=False) if same else nullcontext():
        found: Tensor = norm(x)
        return found


class _QuickGELU(QuickGELU):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _ScaledSilu.apply(x) if x.dtype in HALF else super().forward(x)
        return y


class _ScaledSilu(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(1.702 x) / 1.702, whose derivative is that of silu."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = SLOPE * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(SLOPE)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        found: Tensor = torch.ops.aten.silu_backward(gradient, ctx.saved_tensors[0])
        return found
