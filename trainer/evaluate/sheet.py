"""Drawing one row of a comparison: the whole picture with a rectangle, crops with captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lasr.errors import UserError
from trainer.sheets import to_uint8

GAP, LINE = 8, 18  # pixels: between panels; height of a line of text
INK, FAINT, PAPER = (30, 30, 30), (105, 105, 105), (255, 255, 255)
RED = (225, 30, 30)
MOST_COLUMNS = 5  # as figures 10 to 12


@dataclass(frozen=True)
class Crop:
    """A place in the SR pictures, in their pixels."""

    x: int
    y: int
    width: int
    height: int

    def of(self, picture: Tensor) -> Tensor:
        """(3, h, w) to (3, height, width). Raises UserError: it reaches beyond the picture."""
        height, width = picture.shape[-2:]
        if self.x + self.width > width or self.y + self.height > height:
            raise UserError(
                f"--crop {self.x},{self.y},{self.width},{self.height}: beyond the picture, which"
                f" is {width}x{height}"
            )
        return picture[:, self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Panel:
    """One method's crop, what it is, and lines about it."""

    title: str
    lines: Sequence[str]
    picture: Tensor  # (3, height, width) of the crop


def most_textured(picture: Tensor, side: int) -> Crop:
    """The square with the largest mean gradient of the luma. picture: (3, h, w)."""
    height, width = picture.shape[-2:]
    side = min(side, height, width)
    grey = picture.double().mean(0)
    dy = F.pad(grey.diff(dim=0).abs(), (0, 0, 0, 1))
    dx = F.pad(grey.diff(dim=1).abs(), (0, 1))
    # Sums over all squares at once, as differences of sums from the corner.
    sums = F.pad((dx + dy).cumsum(0).cumsum(1), (1, 0, 1, 0))
    texture = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = divmod(int(texture.argmax()), texture.shape[1])
    return Crop(x, y, side, side)


def draw_row(
    name: str, whole: Tensor, crop: Crop, panels: Sequence[Panel], side: int
) -> Image.Image:
    """The whole picture at the left with the crop's rectangle, the crops beside it.

    whole: (3, h, w), the picture that the crop is in. side: of a crop as it is shown, pixels; the
    crop's own pixels stay visible as squares, nothing is smoothed.
    """
    factor = max(1, round(side / max(crop.width, crop.height)))
    shown = (crop.width * factor, crop.height * factor)
    rows = -(-len(panels) // MOST_COLUMNS)
    if len(panels) > 3:
        rows = max(rows, 2)  # the whole picture becomes large enough to recognise
    columns = -(-len(panels) // rows)
    text = LINE * (1 + max(len(panel.lines) for panel in panels))
    cell = (shown[0] + GAP, shown[1] + text + GAP)
    height = rows * cell[1] - GAP
    left = _whole(whole, crop, height - LINE)
    sheet = Image.new("RGB", (left.width + GAP + columns * cell[0] - GAP, height), PAPER)
    sheet.paste(left, (0, 0))
    draw = ImageDraw.Draw(sheet)
    _write(draw, (0, left.height), left.width, name, INK)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = left.width + GAP + column * cell[0], row * cell[1]
        tile = Image.fromarray(to_uint8(panel.picture))
        sheet.paste(tile.resize(shown, Image.Resampling.NEAREST), (x, y))
        _write(draw, (x, y + shown[1]), shown[0], panel.title, INK)
        for line, words in enumerate(panel.lines, start=1):
            _write(draw, (x, y + shown[1] + line * LINE), shown[0], words, FAINT)
    return sheet


def stack(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows beneath each other, with a margin around."""
    width = max(row.width for row in rows) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(row.height + 2 * GAP for row in rows)), PAPER)
    y = GAP
    for row in rows:
        sheet.paste(row, (GAP, y))
        y += row.height + 2 * GAP
    return sheet


def _whole(picture: Tensor, crop: Crop, height: int) -> Image.Image:
    image = Image.fromarray(to_uint8(picture))
    factor = min(height / image.height, 2 * height / image.width)  # no panorama beyond 2:1
    small = image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))),
        Image.Resampling.LANCZOS,
    )
    corners = [crop.x, crop.y, crop.x + crop.width, crop.y + crop.height]
    box = [round(value * factor) for value in corners]
    draw = ImageDraw.Draw(small)
    for grown, colour, width in ((2, PAPER, 1), (1, RED, 2)):  # legible on any ground
        draw.rectangle(
            (box[0] - grown, box[1] - grown, box[2] + grown, box[3] + grown),
            outline=colour,
            width=width,
        )
    return small


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, text: str, ink: tuple[int, ...]
) -> None:
    """In the middle of `width` pixels, smaller where it would not fit."""
    size = 14
    while size > 9 and draw.textlength(text, font=_font(size)) > width:
        size -= 1
    draw.text((corner[0] + width / 2, corner[1] + 2), text, fill=ink, font=_font(size), anchor="ma")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own lacks arrows, the times sign and most letters that method names may have.
    try:
        from matplotlib import font_manager
    except ImportError as error:
        raise UserError(f"{error}; run `pip install '.[evaluate]'`") from error
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
