"""Whether a perceptual term prefers the true enlargement of a picture to spoiled ones.

    python -m benchmarks.perceptual --photographs FOLDER
    python -m benchmarks.perceptual --photographs FOLDER --weights vgg19
    python -m benchmarks.perceptual --photographs FOLDER --channels

40 crops of photographs out of packages (lasr/weights/small/photographs.txt) are shrunk to 1/4.
Counted is in how many of them the VGG loss is lower for the crop itself than for the same crop
mirrored, tinted, blurred or shifted. FOLDER: with the files of Debian packages that are not
installed.

--channels prints instead which channels of lite0-features prefer a blurred picture: BLUR of
trainer/models/lite0.py. Their crops are of photographs after the first 40.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lasr.cli import Command
from lasr.weights.locate import locate
from lasr.weights.small import crops
from lasr.weights.small.towers import lite0
from trainer.models.lite0 import Lite0
from trainer.models.vgg import load_vgg, vgg_term

SCALE = 4


class PerceptualConfig(BaseModel):
    """What this benchmark takes."""

    photographs: list[Path] = Field([], description="folders of unpacked Debian packages")
    weights: str = Field("lite0-features", description="weights of the VGG loss")
    layers: list[str] | None = Field(None, description="layers to compare")
    pictures: int = Field(40, ge=1, description="crops of photographs")
    side: int = Field(160, ge=64, description="pixels of a crop, a multiple of 4")
    channels: bool = Field(False, description="print the channels that prefer a blurred picture")


def tinted(x: Tensor) -> Tensor:
    """A tenth more red and less blue."""
    return (x * torch.tensor([1.1, 1.0, 0.9]).view(1, 3, 1, 1)).clamp(0, 1)


SPOILED: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored": lambda x: x.flip(3),
    "tinted by 10 %": tinted,
    "blurred, sigma 2": lambda x: gaussian_blur(x, [13, 13], [2.0, 2.0]),
    "blurred, sigma 4": lambda x: gaussian_blur(x, [25, 25], [4.0, 4.0]),
    "shifted right by 4": lambda x: x.roll(4, 3),
    "shifted left by 4": lambda x: x.roll(-4, 3),
    "shifted down by 4": lambda x: x.roll(4, 2),
    "shifted up by 4": lambda x: x.roll(-4, 2),
}


def pictures(config: PerceptualConfig, first: int, last: int, each: int, seed: int) -> list[Tensor]:
    """Crops (1, 3, side, side) in [0, 1]: `each` of the photographs from `first` to `last`."""
    found = list(crops.find(crops.photographs(judge=False), config.photographs).values())
    rng, some = np.random.default_rng(seed), []
    for path in found[first:last]:
        photograph = crops.read(path)
        for _ in range(each):
            y, x = (int(rng.integers(n - config.side + 1)) for n in photograph.shape[:2])
            crop = photograph[y : y + config.side, x : x + config.side]
            some.append(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255)
    return some


def reduced(true: Tensor) -> Tensor:
    """The input of which a picture is the true enlargement."""
    small = F.interpolate(true, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    return small.clamp(0, 1)


def channels(config: PerceptualConfig) -> list[int]:
    """Channels of the expansion that prefer a blurred picture, by the mean over crops."""
    located = locate("lite0-features", "vgg")
    assert located.path is not None
    network = Lite0(lite0(located.path), ["expansion"], without=())
    blurs = [spoil for name, spoil in SPOILED.items() if name.startswith("blurred")]
    preferences = []
    for true in pictures(config, config.pictures, config.pictures + 26, 3, seed=11):
        target = network(reduced(true))["expansion"]

        def distance(picture: Tensor, target: Tensor = target) -> Tensor:
            pooled = F.avg_pool2d(network(picture)["expansion"], SCALE)
            return (pooled - target).abs().mean(dim=(0, 2, 3)) + 1e-4

        least = distance(true)
        preferences.append(torch.stack([(distance(blur(true)) / least).log() for blur in blurs]))
    worst = torch.stack(preferences).mean(dim=0).amin(dim=0)
    return [i for i, each in enumerate(worst.tolist()) if each <= 0]


@torch.no_grad()
def run(config: PerceptualConfig) -> None:
    """Print a line for each way to spoil a picture, or the channels that prefer blur."""
    torch.set_num_threads(1)
    if config.channels:
        print(*channels(config), sep=", ")
        return
    network = load_vgg(locate(config.weights, "vgg"), config.layers)
    right = dict.fromkeys(SPOILED, 0)
    for true in (some := pictures(config, 0, config.pictures, 1, seed=0)):
        lr = reduced(true)
        least = vgg_term(network, true, lr)
        for name, spoil in SPOILED.items():
            right[name] += int(vgg_term(network, spoil(true), lr) > least)
    for name, count in right.items():
        print(f"{name:20} {count} of {len(some)}")


main = Command(PerceptualConfig, run, name="python -m benchmarks.perceptual", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
