"""PSNR on Y, of photographs that are held out and of a benchmark such as Set5.

The convention is that of BasicSR and of the papers: the SR picture is rounded to 8 bits, Y is
MATLAB's rgb2ycbcr (BT.601, 16 to 235), and as many pixels as the scale are cut off each side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lasr.device import autocast
from lasr.errors import UserError
from lasr.pictures.read import read_rgb
from schemas.manifest import SCALE
from trainer.evaluate import testset
from trainer.evaluate.resize import cut_to_multiple, enlarge, luma, reduce
from trainer.pretrain.config import PretrainConfig
from trainer.pretrain.photographs import Photograph, to_tensor
from trainer.sheets import to_uint8

MOST, SIDE = 32, 128  # held-out photographs that are measured, and LR pixels of each side
Upscale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """An LR picture (3, h, w) and its HR picture (3, SCALE h, SCALE w), float32 in [0, 1]."""

    name: str
    lr: Tensor
    hr: Tensor


def psnr_y(sr: Tensor, hr: Tensor, border: int = SCALE) -> float:
    """PSNR in dB of the Y of two pictures (3, h, w) in [0, 1], without `border` pixels each side.

    Infinite for equal pictures. Raises ValueError: shapes that differ, or nothing but border.
    """
    if sr.shape != hr.shape or min(sr.shape[-2:]) <= 2 * border:
        raise ValueError(f"psnr_y: {tuple(sr.shape)}, {tuple(hr.shape)}, border {border}")
    first, second = (
        luma(torch.from_numpy(to_uint8(picture)).permute(2, 0, 1).double() / 255)[0]
        for picture in (sr, hr)
    )
    height, width = first.shape
    inside = (slice(border, height - border), slice(border, width - border))
    error = (first - second)[inside].square().mean().item()
    return -10 * math.log10(error) if error else math.inf


class Validation:
    """The pictures that a run is validated on, by set: `held_out`, and `given` by --validate-on."""

    def __init__(self, held_out: list[Photograph], given: list[Pair]):
        centres = [_centre(photograph) for photograph in held_out[:MOST]]
        every = {"held_out": centres, "given": given}
        self.sets = {name: pairs for name, pairs in every.items() if pairs}
        self.bicubic = {name: self._mean(name, _bicubic) for name in self.sets}

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """The mean PSNR of each set, as `psnr_y_held_out` and `psnr_y_given`; float32."""
        training, device = network.training, next(network.parameters()).device
        network.eval()

        def upscale(lr: Tensor) -> Tensor:
            with autocast(device, "float32"):
                sr: Tensor = network.forward(lr[None].to(device))[0].cpu()
            return sr

        values = {f"psnr_y_{name}": self._mean(name, upscale) for name in self.sets}
        network.train(training)
        return values

    def _mean(self, name: str, upscale: Upscale) -> float:
        scores = [psnr_y(upscale(pair.lr), pair.hr) for pair in self.sets[name]]
        return sum(scores) / len(scores)


def read_pairs(config: PretrainConfig) -> list[Pair]:
    """The pictures of --validate-on with the LR pictures of --validate-lr, or reduced ones.

    None without --validate-on. Raises UserError: no picture, one without an LR picture, or one of
    another size.
    """
    if config.validate_on is None:
        return []
    files = testset.find([config.validate_on])
    lr_files = {}
    if config.validate_lr:
        given = testset.find([config.validate_lr])
        lr_files = testset.match([file.stem for file in files], given)
    pairs = []
    for file in files:
        hr = cut_to_multiple(read_rgb(file), SCALE)
        if config.validate_lr is None:
            lr = reduce(hr, SCALE).float().mul(255).round().clamp(0, 255).div(255)
        elif file.stem in lr_files:
            lr = read_rgb(lr_files[file.stem])
        else:
            raise UserError(
                f"{config.validate_lr}: no LR picture of {file.name}", "add it, or leave it out"
            )
        height, width = (SCALE * side for side in lr.shape[-2:])
        if hr.shape[-2:] != (height, width) or min(height, width) <= 2 * SCALE:
            raise UserError(
                f"{file}: {hr.shape[-1]}x{hr.shape[-2]}, and its LR picture is"
                f" {lr.shape[-1]}x{lr.shape[-2]}",
                f"give LR pictures of a {SCALE}th of the size",
            )
        pairs.append(Pair(file.stem, lr, hr))
    return pairs


def _centre(photograph: Photograph) -> Pair:
    sides = photograph.lr.shape[:2]
    height, width = (min(SIDE, side) for side in sides)
    part = photograph.cut((sides[0] - height) // 2, (sides[1] - width) // 2, height, width)
    return Pair(photograph.name, to_tensor(part.lr[None])[0], to_tensor(part.hr[None])[0])


def _bicubic(lr: Tensor) -> Tensor:
    return enlarge(lr, SCALE)
