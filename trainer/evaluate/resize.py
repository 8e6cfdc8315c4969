"""MATLAB's `imresize(picture, scale, 'bicubic')`, by which benchmarks make their LR pictures."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def enlarge(picture: Tensor, scale: int) -> Tensor:
    """(3, h, w) to (3, scale h, scale w), float64, neither clamped nor rounded."""
    return _resize(picture, scale, 1)


def reduce(picture: Tensor, scale: int) -> Tensor:
    """(3, scale h, scale w) to (3, h, w), antialiased, float64, neither clamped nor rounded.

    Raises ValueError: a side is no multiple of scale; `cut_to_multiple` first.
    """
    height, width = picture.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"reduce: {width}x{height} is not a multiple of {scale}")
    return _resize(picture, 1, scale)


def cut_to_multiple(picture: Tensor, scale: int) -> Tensor:
    """The picture without the last rows and columns beyond a multiple of scale (`modcrop`)."""
    height, width = picture.shape[-2:]
    return picture[..., : height - height % scale, : width - width % scale]


def _resize(picture: Tensor, up: int, down: int) -> Tensor:
    # PyTorch's antialiased bicubic has MATLAB's kernel (a = -1/2, widened when shrinking), but
    # leaves out what is beyond the border where MATLAB mirrors. The margin holds the mirrored
    # pixels; the kernel reaches 2 pixels, or 2 down, to each side.
    margin = 4 * down
    edges = ((0, 0), (margin, margin), (margin, margin))
    mirrored = torch.from_numpy(np.pad(picture.double().numpy(), edges, mode="symmetric"))
    size = [side * up // down for side in mirrored.shape[-2:]]
    resized = F.interpolate(mirrored[None], size, mode="bicubic", antialias=True)[0]
    cut = margin * up // down
    return resized[:, cut:-cut, cut:-cut]
