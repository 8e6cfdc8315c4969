"""Weights in half precision, cast once a step and not at each use.

Autocast casts a weight wherever a layer uses it, and a CUDA graph forbids its cache. A step uses
the image encoder's weights three times, and its backward pass casts as many gradients back. Here
all weights are cast together, the layers use the copies while a step runs, and the gradients of the
copies are added to those of the float32 weights together. Optimizer, moving average and checkpoints
see float32 weights only.
"""

from collections.abc import Iterable

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

# Not what other weights are computed of, as those of a spectral norm.
NAMES = ("weight", "bias", "in_proj_weight", "in_proj_bias")
CAST = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)  # by autocast, at each use


class HalfWeights:
    """A context in which layers of networks use copies of their weights in half precision.

    networks: some may share storage with others, as constants (`FrozenImages`); all are on their
    device, in their memory format. dtype: None if networks compute in float32: then nothing happens
    at all. Weights may change before each use, but not move.
    """

    def __init__(self, networks: Iterable[nn.Module], dtype: torch.dtype | None):
        self.pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by address: float32, half
        self.uses: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        for network in networks if dtype else ():
            for module, name, weight in _cast_weights(network):
                address = _address(weight)
                if address not in self.pairs:
                    new = torch.empty_like(weight, dtype=dtype)
                    self.pairs[address] = weight, nn.Parameter(new, weight.requires_grad)
                half = self.pairs[address][1]
                if half.requires_grad and not weight.requires_grad:
                    half = nn.Parameter(half.detach(), requires_grad=False)  # the same storage
                self.uses.append((module, name, weight, half))

    def __enter__(self) -> None:
        with torch.no_grad():
            if self.pairs:
                weights, halves = zip(*self.pairs.values(), strict=True)
                torch._foreach_copy_(halves, weights)
        for module, name, _, half in self.uses:
            module._parameters[name] = half

    def __exit__(self, *error: object) -> None:
        for module, name, weight, _ in self.uses:
            module._parameters[name] = weight
        for _, half in self.pairs.values():
            half.grad = None

    @torch.no_grad()
    def deliver(self) -> None:
        """Add the gradients of the copies to those of the weights, after each backward pass."""
        first: list[tuple[Tensor, Tensor]] = []
        more: list[tuple[Tensor, Tensor]] = []  # of a batch in parts
        for weight, half in self.pairs.values():
            if half.grad is not None:
                pairs = first if weight.grad is None else more
                if weight.grad is None:
                    weight.grad = torch.empty_like(weight)
                pairs.append((weight.grad, half.grad))
                half.grad = None
        if first:
            torch._foreach_copy_([of for of, _ in first], [half for _, half in first])
        if more:
            torch._foreach_add_([of for of, _ in more], [half for _, half in more])


def _address(weight: Tensor) -> int:
    return weight.data_ptr()


def _cast_weights(network: nn.Module) -> Iterable[tuple[nn.Module, str, nn.Parameter]]:
    """The weights that autocast would cast, and those of the norms in a transformer's blocks."""
    for module in network.modules():
        chosen = [module] if isinstance(module, CAST) else []
        if isinstance(module, ResidualAttentionBlock):
            chosen += [module.ln_1, module.ln_2]
        for each in chosen:
            for name, weight in each.named_parameters(recurse=False):
                if name in NAMES:
                    yield each, name, weight
