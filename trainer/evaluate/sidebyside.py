"""Draw comparison sheets of an evaluation: crops of every method, enlarged, with their scores.

lasr sidebyside data/evaluation
lasr sidebyside data/evaluation --crop 80,40,64,64 --out fig4.png

The whole picture is at the left, with a rectangle around the crop, as in figures 3, 4 and 9 to 12
of the paper. Needs the extra `evaluate`.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, Field

from lasr.cli import Command, progress
from lasr.errors import UserError, require
from lasr.marks import in_picture
from lasr.ownership import check_file, check_folder, own_path
from lasr.pictures.read import read_rgb
from lasr.terminal.output import say
from lasr.terminal.summary import counted
from trainer.evaluate import scores
from trainer.evaluate.scores import Score

GAP, LINE = 8, 18  # pixels: between panels; height of a line of text
INK, FAINT, PAPER, RED = (30, 30, 30), (105, 105, 105), (255, 255, 255), (225, 30, 30)
MOST_COLUMNS = 5  # as figures 10 to 12


class SideBySideConfig(BaseModel):
    """The flags of `lasr sidebyside`."""

    evaluation: Path = Field(description="folder that `lasr evaluate` wrote")
    pictures: list[str] = Field([], description="names of pictures (default: all)")
    methods: list[str] = Field([], description="methods, in this order (default: all)")
    metrics: list[str] | None = Field(
        None, description="scores to write below the crops, or `none` (default: all)"
    )
    crop: str | None = Field(
        None,
        description="x,y,width,height in the enlarged picture (default: its most textured square)",
    )
    crop_size: int = Field(64, ge=8, description="side of that square, pixels")
    side: int = Field(256, ge=32, description="side of a crop on the sheet, pixels")
    out: Path | None = Field(
        None,
        description="FILE.png for one sheet with a row per picture, or a folder for one sheet per"
        " picture (default: EVALUATION/sheets)",
    )


@dataclass(frozen=True)
class Crop:
    """A rectangle of the SR pictures, in their pixels."""

    x: int
    y: int
    width: int
    height: int

    def of(self, picture: np.ndarray) -> np.ndarray:
        """Cut the rectangle out of a picture, h x w x 3. Raises UserError: it is too small."""
        height, width = picture.shape[:2]
        if self.x + self.width > width or self.y + self.height > height:
            size = f"{self.width}x{self.height} at {self.x},{self.y}"
            raise UserError(f"--crop: {size} exceeds a picture of {width}x{height}", "move it")
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Panel:
    """One method's crop, h x w x 3 uint8, and the text below it."""

    title: str
    lines: Sequence[str]
    picture: np.ndarray


def run(config: SideBySideConfig) -> None:
    """Write the sheets. Raises UserError: no such evaluation, picture, method, metric or crop."""
    out = config.out or config.evaluation / "sheets"
    is_file, inputs = out.suffix.lower() == ".png", [config.evaluation] if config.out else []
    (check_file if is_file else check_folder)(out, inputs)
    found = scores.read(config.evaluation)
    pictures = _choose([score.image for score in found], config.pictures, "--pictures")
    methods = _choose([score.method for score in found], config.methods, "--methods")
    wanted = [name for name in config.metrics or [] if name != "none"]
    metrics = _choose([score.metric for score in found], wanted, "--metrics")
    if config.metrics is not None and not wanted:
        metrics = []
    if not is_file:
        check_folder(out, inputs, [out / f"{name}.png" for name in pictures])
    rows = {}
    with progress(len(pictures), "drawn", "img") as bar:
        for name in pictures:
            own = [s for s in found if s.image == name and s.method in methods]
            own.sort(key=lambda score: methods.index(score.method))
            if own:
                rows[name] = _row(name, own, metrics, config)
            bar.update()
    sheets = {out / f"{name}.png": stack([row]) for name, row in rows.items()}
    if is_file:
        sheets = {out: stack(list(rows.values()))}
    for path, sheet in sheets.items():
        with own_path(path) as temporary:
            sheet.save(temporary, format="PNG", **in_picture())
    say(f"{counted(len(rows), 'picture')}, {counted(len(methods), 'method')}: {out}")


def most_textured(picture: np.ndarray, side: int) -> Crop:
    """Find the square with the largest mean gradient of the grey picture. picture: h x w x 3."""
    height, width = picture.shape[:2]
    side = min(side, height, width)
    grey = picture.astype(np.float64).sum(2)
    gradient = np.zeros_like(grey)
    gradient[:-1] += np.abs(np.diff(grey, axis=0))
    gradient[:, :-1] += np.abs(np.diff(grey, axis=1))
    # Sums over all squares at once, as differences of sums from the corner.
    sums = np.pad(gradient.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    texture = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    y, x = divmod(int(texture.argmax()), texture.shape[1])
    return Crop(x, y, side, side)


def draw_row(
    name: str, whole: np.ndarray, crop: Crop, panels: Sequence[Panel], side: int
) -> Image.Image:
    """Draw the whole picture, h x w x 3 uint8, with the crop's rectangle, and the panels beside it.

    side: of a crop on the sheet, pixels. Pixels are enlarged to squares; nothing is smoothed.
    """
    factor = max(1, round(side / max(crop.width, crop.height)))
    shown = (crop.width * factor, crop.height * factor)
    rows = -(-len(panels) // MOST_COLUMNS)
    if len(panels) > 3:
        rows = max(rows, 2)  # makes the whole picture large enough to recognise
    columns = -(-len(panels) // rows)
    text = LINE * (1 + max(len(panel.lines) for panel in panels))
    cell = (shown[0] + GAP, shown[1] + text + GAP)
    height = rows * cell[1] - GAP
    left = _overview(whole, crop, height - LINE)
    sheet = Image.new("RGB", (left.width + columns * cell[0], height), PAPER)
    sheet.paste(left, (0, 0))
    draw = ImageDraw.Draw(sheet)
    _write(draw, (0, left.height), left.width, name, INK)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = left.width + GAP + column * cell[0], row * cell[1]
        sheet.paste(Image.fromarray(panel.picture).resize(shown, Image.Resampling.NEAREST), (x, y))
        _write(draw, (x, y + shown[1]), shown[0], panel.title, INK)
        for line, words in enumerate(panel.lines, start=1):
            _write(draw, (x, y + shown[1] + line * LINE), shown[0], words, FAINT)
    return sheet


def stack(rows: Sequence[Image.Image]) -> Image.Image:
    """Put rows below each other, with a margin around each."""
    width = max(row.width for row in rows) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(row.height + 2 * GAP for row in rows)), PAPER)
    y = GAP
    for row in rows:
        sheet.paste(row, (GAP, y))
        y += row.height + 2 * GAP
    return sheet


def _choose(known: list[str], wanted: list[str], flag: str) -> list[str]:
    names = list(dict.fromkeys(known))
    fix = f"choose among {', '.join(names)}"
    for name in wanted:
        if name not in names:
            raise UserError(f"{flag} {name}: not in this evaluation", fix)
    return wanted or names


def _row(name: str, own: list[Score], metrics: list[str], config: SideBySideConfig) -> Image.Image:
    by_method: dict[str, dict[str, Score]] = defaultdict(dict)
    for score in own:
        by_method[score.method][score.metric] = score
    outputs = {score.method: _read(score.output_path) for score in own}
    reference = _read(own[0].reference_path) if own[0].reference_path else None
    whole = next(iter(outputs.values())) if reference is None else reference
    crop = _parse_crop(config.crop) if config.crop else most_textured(whole, config.crop_size)
    panels = []
    for method, scored in by_method.items():
        texts = [_caption(scored[metric]) for metric in metrics if metric in scored]
        lines = [", ".join(texts[at : at + 2]) for at in range(0, len(texts), 2)]
        panels.append(Panel(method, lines, crop.of(outputs[method])))
    if reference is not None:
        panels.append(Panel("HR", [], crop.of(reference)))
    return draw_row(name, whole, crop, panels, config.side)


def _read(path: str) -> np.ndarray:
    """A picture as h x w x 3 uint8."""
    from trainer.sheets import to_uint8

    return to_uint8(read_rgb(Path(path)))


def _caption(score: Score) -> str:
    digits = 2 if abs(score.score) >= 10 else 3
    return f"{score.title} {score.score:.{digits}f}"


def _parse_crop(text: str) -> Crop:
    if not re.fullmatch(r"\d+,\d+,[1-9]\d*,[1-9]\d*", text):
        raise UserError(f"--crop {text}: not a rectangle", "give x,y,width,height in pixels")
    return Crop(*map(int, text.split(",")))


def _overview(picture: np.ndarray, crop: Crop, height: int) -> Image.Image:
    """The whole picture, scaled down, with the crop's rectangle."""
    image = Image.fromarray(picture)
    factor = min(height / image.height, 2 * height / image.width)  # panoramas become 2:1 at most
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    corners = [crop.x, crop.y, crop.x + crop.width, crop.y + crop.height]
    left, top, right, bottom = (round(value * factor) for value in corners)
    draw = ImageDraw.Draw(small)
    for by, colour, width in ((2, PAPER, 1), (1, RED, 2)):  # visible on any background
        draw.rectangle((left - by, top - by, right + by, bottom + by), None, colour, width)
    return small


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, text: str, ink: tuple[int, ...]
) -> None:
    """Write text in the middle of `width` pixels, smaller if it would not fit."""
    size = 14
    while size > 9 and draw.textlength(text, font=_font(size)) > width:
        size -= 1
    draw.text((corner[0] + width / 2, corner[1] + 2), text, fill=ink, font=_font(size), anchor="ma")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's default font lacks arrows, the times sign and most letters that names may have.
    font_manager = require("matplotlib.font_manager", "evaluate")
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def following(config: SideBySideConfig) -> list[object]:
    """The next command: the curve of a training run, if its steps were scored."""
    methods = {score.method for score in scores.read(config.evaluation)}
    scored = any(method.rpartition("@")[2].isdecimal() for method in methods if "@" in method)
    return ["lasr", "curve", config.evaluation] if scored else []


main = Command(
    SideBySideConfig, run, name="lasr sidebyside", about=__doc__, positional="evaluation",
    following=following,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
