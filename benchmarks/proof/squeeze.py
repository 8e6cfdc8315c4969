"""A perceptual distance by a network that takes no part in training: SqueezeNet 1.1.

LPIPS without its learned weights (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", whose table 5 has SqueezeNet so): the features of its layers, each
of length 1 at each place, compared by squared distance. The networks of LPIPS itself are in no
package. These weights are of Caffe's SqueezeNet (Iandola et al. 2016, BSD), as the package
ndf 0.1.4 (MIT) carries them, in half precision.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = Path(__file__).with_name("squeezenet.safetensors")
MEAN = (103.939, 116.779, 123.68)  # of BGR in [0, 255], Caffe's
# The layers of LPIPS; the network halves its pictures before those that are marked.
LAYERS = (("conv1",), ("fire2", "fire3"), ("fire4", "fire5"), ("fire6",), ("fire7",), ("fire8",),
          ("fire9",))  # fmt: skip
HALVED = (1, 2, 3)  # indices of LAYERS


def distance(a: Tensor, b: Tensor) -> Tensor:
    """The distance of pictures (n, 3, h, w), RGB in [0, 1]: (n,), 0 if they are equal."""
    pairs = zip(features(a), features(b), strict=True)
    each = [
        (F.normalize(x) - F.normalize(y)).square().sum(dim=1).mean(dim=(1, 2)) for x, y in pairs
    ]
    return torch.stack(each).sum(dim=0)


def features(pictures: Tensor) -> list[Tensor]:
    """The features (n, c, h, w) of each of LAYERS, of pictures (n, 3, h, w), RGB in [0, 1]."""
    weights = _weights(pictures.device)
    x = pictures.flip(1) * 255 - pictures.new_tensor(MEAN).view(1, 3, 1, 1)
    found = []
    for index, names in enumerate(LAYERS):
        if index in HALVED:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for name in names:
            if name == "conv1":
                x = F.relu(F.conv2d(x, *weights[name], stride=2))
            else:
                x = F.relu(F.conv2d(x, *weights[f"{name}/squeeze1x1"]))
                wide = F.conv2d(x, *weights[f"{name}/expand3x3"], padding=1)
                x = F.relu(torch.cat([F.conv2d(x, *weights[f"{name}/expand1x1"]), wide], dim=1))
        found.append(x)
    return found


@functools.cache
def _weights(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    tensors = {name: x.float().to(device) for name, x in load_file(WEIGHTS).items()}
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    return {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names}
