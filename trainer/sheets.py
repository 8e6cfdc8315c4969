"""Sheets that compare pictures: LR | bicubic | SR."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from lasr.files import IsOurs, atomic_path
from lasr.marks import in_picture
from lasr.ownership import is_ours

_GAP, _TITLE = 6, 20  # pixels
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


def to_uint8(picture: Tensor) -> np.ndarray:
    """A picture (3, h, w), clamped to [0, 1], as h x w x 3 uint8."""
    rounded = picture.detach().float().clamp(0, 1).mul(255).round().byte()
    array: np.ndarray = rounded.permute(1, 2, 0).cpu().numpy()
    return array


def bicubic(pictures: Tensor, scale: int) -> Tensor:
    """Bicubic enlargement of (n, 3, h, w) in [0, 1], antialiased as in Pillow and MATLAB."""
    size = [side * scale for side in pictures.shape[-2:]]
    enlarged = F.interpolate(pictures.float(), size=size, mode="bicubic", antialias=True)
    return enlarged.clamp(0, 1)


def write_comparison(path: Path, lr: Tensor, sr: Tensor) -> None:
    """Write a sheet with one row per picture: LR (pixels as squares) | bicubic | SR.

    lr: (n, 3, h, w) and sr: (n, 3, s h, s w), both in [0, 1]. Atomic.
    """
    scale = sr.shape[-1] // lr.shape[-1]
    columns = {
        f"LR {lr.shape[-1]}x{lr.shape[-2]}": nearest(lr, scale),
        "bicubic": bicubic(lr, scale),
        f"SR {sr.shape[-1]}x{sr.shape[-2]}": sr,
    }
    write_sheet(path, columns, is_ours=None)  # in a run's folder, which is the run's


def sheet_tiles(sheet: Image.Image, columns: int = 3) -> list[list[Image.Image]]:
    """The square pictures of a sheet that `write_sheet` wrote, by column.

    Raises ValueError: the sheet has another layout.
    """
    side = (sheet.width - _GAP) // columns - _GAP
    rows, rest = divmod(sheet.height - _GAP - _TITLE, side + _GAP) if side > 0 else (0, 0)
    if not rows or rest or columns * (side + _GAP) + _GAP != sheet.width:
        raise ValueError(f"a sheet of {sheet.width}x{sheet.height} pixels")
    tops = [_TITLE + _GAP + row * (side + _GAP) for row in range(rows)]
    lefts = [_GAP + column * (side + _GAP) for column in range(columns)]
    return [[sheet.crop((x, y, x + side, y + side)) for y in tops] for x in lefts]


def nearest(pictures: Tensor, scale: int) -> Tensor:
    """Nearest-neighbour enlargement: (n, 3, h, w) to (n, 3, scale h, scale w)."""
    return pictures.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def write_sheet(path: Path, columns: dict[str, Tensor], is_ours: IsOurs | None = is_ours) -> None:
    """Write columns of pictures side by side, by title, each (n, 3, h, w) in [0, 1]. Atomic.

    is_ours: whether a file at `path` may be replaced; None: any.
    """
    rows, _, height, width = next(iter(columns.values())).shape
    sheet = Image.new(
        "RGB",
        (len(columns) * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP + _TITLE),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for column, (title, pictures) in enumerate(columns.items()):
        x = _GAP + column * (width + _GAP)
        draw.text((x, 4), title, fill=_INK)
        for row, picture in enumerate(pictures):
            tile = Image.fromarray(to_uint8(picture))
            sheet.paste(tile, (x, _TITLE + _GAP + row * (height + _GAP)))
    with atomic_path(path, is_ours) as temporary:
        sheet.save(temporary, format="PNG", compress_level=1, **in_picture())


@torch.no_grad()
def colour_shift(sr: Tensor, lr: Tensor) -> Tensor:
    """Mean absolute difference between the mean colours of SR and LR, a scalar in [0, 1].

    Without the VGG term the method shifts colours (section 4.3, figure 6c).
    """
    return (sr.float().mean((-2, -1)) - lr.mean((-2, -1))).abs().mean()
