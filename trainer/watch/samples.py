"""Samples over time: cut out of a run's sample sheets, small enough for a page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.sheets import sheet_tiles

MOST = 6  # sheets that are shown
ROWS = 3  # patches of each


@dataclass(frozen=True)
class Samples:
    """titles: of the columns. rows: pictures as data URIs, one for each column."""

    titles: list[str]
    rows: list[list[str]]


def samples(folder: Path) -> Samples | None:
    """LR, bicubic, and the network's output after some steps; None if there is no sheet.

    folder: with step0000000.png, … Sheets that cannot be read are left out.
    """
    sheets = {}
    for path in sorted(folder.glob("step*.png")):
        digits = path.stem.removeprefix("step")
        if digits.isdecimal():
            sheets[int(digits)] = path
    steps = sorted(sheets)
    if len(steps) > MOST:
        steps = [steps[round(i * (len(steps) - 1) / (MOST - 1))] for i in range(MOST)]
    titles: list[str] = []
    rows: list[list[str]] = [[] for _ in range(ROWS)]
    for step in steps:
        try:
            with Image.open(sheets[step]) as sheet:
                columns = sheet_tiles(sheet.convert("RGB"))
        except (OSError, ValueError):
            continue
        before = {} if titles else {"LR": columns[0], "bicubic": columns[1]}
        for title, tiles in (before | {f"step {step:,}": columns[2]}).items():
            titles.append(title)
            for row, tile in zip(rows, tiles, strict=False):  # of the first ROWS patches
                row.append(_uri(tile, lossless=title == "LR"))
    return Samples(titles, [row for row in rows if row]) if titles else None


def _uri(tile: Image.Image, lossless: bool) -> str:
    content = io.BytesIO()
    if lossless:
        tile.save(content, format="PNG", optimize=True)  # squares: small as they are
    else:
        tile.save(content, format="WebP", quality=92, method=4)
    kind = "png" if lossless else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
