"""The modified VGG loss of section 3.5: I_SR keeps the structure and colours of I_LR."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vgg import make_layers  # type: ignore[import-untyped]

from lasr.errors import UserError
from lasr.weights.locate import Located, WeightsError
from lasr.weights.tensors import read_tensors
from trainer.losses import full_precision
from trainer.models.lite0 import load_lite0

BLOCKS = (2, 2, 4, 4, 4)  # convolutions of VGG19 between its max poolings
WIDTHS = tuple(w for w, n in zip((64, 128, 256, 512, 512), BLOCKS, strict=True) for _ in range(n))
CONV5_4 = ("conv5_4",)  # the layer of SRGAN and ESRGAN; as in ESRGAN before its ReLU
CONV1_2 = ("conv1_2",)  # for an untrained network, see `untrained_vgg`

# Names of torchvision's layers: convB_I is the output of a convolution, reluB_I its activation.
_CONVS = [
    (f"{block}_{i}", 2 * (sum(BLOCKS[: block - 1]) + i - 1) + block - 1)
    for block, n in enumerate(BLOCKS, start=1)
    for i in range(1, n + 1)
]
TAPS = {
    f"{kind}{name}": index + after
    for name, index in _CONVS
    for after, kind in enumerate(("conv", "relu"))
}


class VGG(nn.Module):
    """VGG19's features at named layers. Frozen: only the pictures receive gradients.

    Args:
        layers: names of `TAPS`, `conv1_1` to `relu5_4`; layers beyond the deepest are not built.
        widths: channels of the 16 convolutions.

    Raises:
        ValueError: a layer that VGG19 does not have, or no layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Sequence[str] = CONV5_4, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        unknown = [layer for layer in layers if layer not in TAPS]
        if unknown or not layers:
            what = f"VGG19 has no layer {unknown[0]!r}" if unknown else "VGG: no layers"
            raise ValueError(f"{what}; give some of conv1_1 ... conv5_4, relu1_1 ... relu5_4")
        self.taps = {TAPS[layer]: layer for layer in layers}
        width = iter(widths)
        config = [item for n in BLOCKS for item in (*(next(width) for _ in range(n)), "M")]
        self.features = make_layers(config)[: max(self.taps) + 1]
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # in place it would overwrite the output of its convolution
        # ImageNet's statistics, as torchvision's weights expect. The device is named, because the
        # layers may be created on the meta device, to be filled from a file.
        for name, value in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            tensor = torch.tensor(value, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Features by layer of `pictures` (n, 3, h, w) in [0, 1].

        Raises:
            ValueError: the pictures are too small for the deepest layer.
        """
        least = 2 ** sum(isinstance(layer, nn.MaxPool2d) for layer in self.features)
        if min(pictures.shape[-2:]) < least:
            h, w = pictures.shape[-2:]
            deepest = self.taps[max(self.taps)]
            raise ValueError(f"VGG: {w}x{h} pixels do not reach {deepest}; use {least} or more")
        x, found = (pictures - self.mean) / self.std, {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found[self.taps[index]] = x
        return found


def vgg_term(
    vgg: nn.Module, sr: Tensor, lr: Tensor, distance: Literal["l1", "l2"] = "l1"
) -> Tensor:
    """The VGG loss between I_SR and I_LR, a scalar: the mean over `vgg`'s layers (section 3.5).

    The features of I_SR are average-pooled by the scale, which gives the size of I_LR's for any h:
    floor(floor(s·h / 2^k) / s) = floor(h / 2^k). I_LR is a constant: only `sr` receives a gradient.
    Distances are computed in float32 under any autocast.

    Args:
        vgg: a `VGG`, or another frozen network that gives features by layer (`Lite0`).
        sr: super-resolved pictures (n, 3, s·h, s·w), s an integer.
        lr: their inputs (n, 3, h, w) in [0, 1].
        distance: mean absolute (`l1`) or mean squared (`l2`) difference.

    Raises:
        ValueError: sr is no whole multiple of lr, the pictures are too small, or the distance is
            unknown.
    """
    measures = {"l1": F.l1_loss, "l2": F.mse_loss}
    if distance not in measures:
        raise ValueError(f"VGG term: no distance {distance!r}; give l1 or l2")
    scale = max(sr.shape[-1] // lr.shape[-1], 1)
    if sr.shape != (*lr.shape[:-2], scale * lr.shape[-2], scale * lr.shape[-1]):
        raise ValueError(
            f"VGG term: {tuple(sr.shape)} is not a whole multiple of {tuple(lr.shape)} in height "
            "and width; give the network's output and its input"
        )
    with torch.no_grad():
        targets = vgg(lr)
    terms = [
        measures[distance](
            F.avg_pool2d(full_precision(feature), scale), full_precision(targets[layer])
        )
        for layer, feature in vgg(sr).items()
    ]
    return torch.stack(terms).mean()


def load_vgg(located: Located, layers: Sequence[str] | None = None) -> nn.Module:
    """The network of the VGG loss with these weights, on the CPU: VGG19, or one in its role.

    layers: None for the ones that suit the weights. Raises WeightsError as `vgg_from`, or
    UserError: a layer that the network does not have.
    """
    if located.family == "lite0":
        return load_lite0(located, layers)
    unknown = [layer for layer in layers or () if layer not in TAPS]
    if unknown:
        raise UserError(
            f"--vgg-layers: VGG19 has no layer {unknown[0]}",
            "pass some of conv1_1 to conv5_4 or relu1_1 to relu5_4",
        )
    if located.path is None:
        return untrained_vgg(layers=layers or CONV1_2)
    return vgg_from(read_tensors(located.path), located.path, layers or CONV5_4)


def vgg_from(tensors: dict[str, Tensor], path: str | Path, layers: Sequence[str]) -> VGG:
    """VGG19 with the tensors of the file `path`, torchvision's keys (`features.0.weight`, ...).

    The classifier is ignored. Widths follow from the shapes, so that narrow networks load too.
    float32, on the CPU.

    Raises:
        WeightsError: not a VGG19 (VGG16 and batch norm are others).
        ValueError: an unknown layer.
    """
    state = {k: v for k, v in tensors.items() if k.startswith("features.")}
    wanted = "give torchvision's vgg19-dcbb9e9d.pth or a network of its layers"
    keys = {f"features.{index}.{kind}" for _, index in _CONVS for kind in ("weight", "bias")}
    if state.keys() != keys:
        odd = min(keys ^ state.keys(), key=lambda key: int(re.sub(r"\D", "", key) or -1))
        fault = "is missing" if odd in keys else "is not a part of it"
        raise WeightsError(f"{path}: is not a VGG19: {odd} {fault}", wanted)
    widths = [len(state[f"features.{index}.bias"]) for _, index in _CONVS]
    with torch.device("meta"):  # nothing is initialised
        vgg = VGG(layers, widths)
    # All 16 are checked, also those that `layers` do not need.
    for (_, index), inputs, outputs in zip(_CONVS, [3, *widths], widths, strict=False):
        shape = tuple(state[f"features.{index}.weight"].shape)
        if shape != (outputs, inputs, 3, 3):
            raise WeightsError(
                f"{path}: is not a VGG19: features.{index}.weight is {shape}, "
                f"not {(outputs, inputs, 3, 3)}",
                wanted,
            )
    vgg.load_state_dict({key: state[key].float() for key in vgg.state_dict()}, assign=True)
    return vgg


def untrained_vgg(seed: int = 0, layers: Sequence[str] = CONV1_2) -> VGG:
    """An UNTRAINED VGG19 of an eighth of the width, for the offline profile.

    The architecture is VGG19's (16 convolutions, 8 to 64 channels), the weights are random from
    `seed` (He et al. 2015). Random features become alike with depth: over 4 photographs and 10
    seeds, the term at conv5_4 prefers a mirrored or tinted enlargement to the true one about every
    second time, and training on it spoils the picture. At conv1_2, the default, it always prefers
    the true one, so that it preserves layout and colours.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        vgg = VGG(layers, [width // 8 for width in WIDTHS])
        for layer in vgg.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return vgg
