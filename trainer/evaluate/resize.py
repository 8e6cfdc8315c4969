"""MATLAB's bicubic `imresize` and luma, from which benchmarks make their LR pictures."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def enlarge(picture: Tensor, scale: int) -> Tensor:
    """(3, h, w) to (3, scale h, scale w), float64, neither clamped nor rounded."""
    return _resize(picture, scale, 1)


def reduce(picture: Tensor, scale: int) -> Tensor:
    """(3, scale h, scale w) to (3, h, w), antialiased, float64, neither clamped nor rounded.

    Raises ValueError: a side is not a multiple of scale; call `cut_to_multiple` first.
    """
    height, width = picture.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"reduce: {width}x{height} is not a multiple of {scale}")
    return _resize(picture, 1, scale)


def cut_to_multiple(picture: Tensor, scale: int) -> Tensor:
    """Cut the last rows and columns beyond a multiple of scale (`modcrop`)."""
    height, width = picture.shape[-2:]
    return picture[..., : height - height % scale, : width - width % scale]


def luma(picture: Tensor) -> Tensor:
    """(3, h, w) in [0, 1] to the Y of MATLAB's rgb2ycbcr, 16/255 to 235/255, in three channels."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    y = (16 + (picture.double() * weights[:, None, None]).sum(0)) / 255
    return y.expand(3, -1, -1)


def _resize(picture: Tensor, up: int, down: int) -> Tensor:
    # PyTorch's antialiased bicubic has MATLAB's kernel (a = -1/2, widened when shrinking). At the
    # border MATLAB mirrors pixels and PyTorch leaves them out, so a mirrored margin is added. The
    # kernel reaches 2 pixels, or 2 down, to each side.
    margin = 4 * down
    edges = ((0, 0), (margin, margin), (margin, margin))
    mirrored = torch.from_numpy(np.pad(picture.double().numpy(), edges, mode="symmetric"))
    size = [side * up // down for side in mirrored.shape[-2:]]
    resized = F.interpolate(mirrored[None], size, mode="bicubic", antialias=True)[0]
    cut = margin * up // down
    return resized[:, cut:-cut, cut:-cut]
