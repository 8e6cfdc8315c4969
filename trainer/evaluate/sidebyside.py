"""Draw what was evaluated side by side: crops of every method, enlarged, with their scores.

python -m trainer.evaluate.sidebyside data/evaluation
python -m trainer.evaluate.sidebyside data/evaluation --crop 80,40,64,64 --out fig4.png

At the left stands the whole picture with the place of the crop (figures 3, 4, 9 to 12 of the
paper). Needs the extra `evaluate`.
"""

import sys
from collections import defaultdict
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, Field

from lasr.cli import Command, progress
from lasr.errors import UserError
from lasr.files import atomic_path
from lasr.pictures.read import read_rgb
from trainer.evaluate import scores
from trainer.evaluate.scores import Score
from trainer.evaluate.sheet import Crop, Panel, draw_row, most_textured, stack


class SheetConfig(BaseModel):
    """What `trainer.evaluate.sidebyside` takes."""

    evaluation: Path = Field(description="folder that trainer.evaluate wrote")
    pictures: list[str] = Field([], description="names of pictures (default: all)")
    methods: list[str] = Field([], description="methods, in this order (default: all)")
    metrics: list[str] | None = Field(
        None, description="scores written below the crops; `none` for a bare sheet (default: all)"
    )
    crop: str | None = Field(
        None,
        description="x,y,width,height in the enlarged picture (default: its most textured square)",
    )
    crop_size: int = Field(64, ge=8, description="side of that square, pixels")
    side: int = Field(256, ge=32, description="side of a crop as it is shown, pixels")
    out: Path | None = Field(
        None,
        description="FILE.png: one sheet with a row a picture; else a folder with a sheet a"
        " picture (default: EVALUATION/sheets)",
    )


def run(config: SheetConfig) -> None:
    """Write the sheets. Raises UserError: no such evaluation, picture, method or place."""
    found = scores.read(config.evaluation)
    pictures = _choose([score.image for score in found], config.pictures, "--pictures")
    methods = _choose([score.method for score in found], config.methods, "--methods")
    wanted = None if config.metrics is None else [name for name in config.metrics if name != "none"]
    metrics = _choose([score.metric for score in found], wanted or [], "--metrics")
    if wanted == []:
        metrics = []
    rows = {}
    with progress(len(pictures), "drawn", "img") as bar:
        for name in pictures:
            own = [s for s in found if s.image == name and s.method in methods]
            own.sort(key=lambda score: methods.index(score.method))
            if own:
                rows[name] = _row(name, own, metrics, config)
            bar.update()
    out = config.out or config.evaluation / "sheets"
    sheets = {out / f"{name}.png": stack([row]) for name, row in rows.items()}
    if out.suffix.lower() == ".png":
        sheets = {out: stack(list(rows.values()))}
    for path, sheet in sheets.items():
        with atomic_path(path) as temporary:
            sheet.save(temporary, format="PNG")
    print(f"{len(rows)} pictures, {len(methods)} methods: {out}")


def _choose(there: list[str], wanted: list[str], flag: str) -> list[str]:
    known = list(dict.fromkeys(there))
    for name in wanted:
        if name not in known:
            raise UserError(f"{flag} {name}: not in this evaluation, which has {', '.join(known)}")
    return wanted or known


def _row(name: str, own: list[Score], metrics: list[str], config: SheetConfig) -> Image.Image:
    by_method: dict[str, dict[str, Score]] = defaultdict(dict)
    for score in own:
        by_method[score.method][score.metric] = score
    outputs = {
        method: read_rgb(Path(next(iter(answers.values())).output_path))
        for method, answers in by_method.items()
    }
    reference = read_rgb(Path(own[0].reference_path)) if own[0].reference_path else None
    whole = next(iter(outputs.values())) if reference is None else reference
    crop = _parse_crop(config.crop) if config.crop else most_textured(whole, config.crop_size)
    panels = []
    for method, answers in by_method.items():
        lines = [
            f"{answers[name].title} {_short(answers[name].score)}"
            for name in metrics
            if name in answers
        ]
        pairs = [", ".join(lines[at : at + 2]) for at in range(0, len(lines), 2)]
        panels.append(Panel(method, pairs, crop.of(outputs[method])))
    if reference is not None:
        panels.append(Panel("HR", [], crop.of(reference)))
    return draw_row(name, whole, crop, panels, config.side)


def _short(score: float) -> str:
    return f"{score:.2f}" if abs(score) >= 10 else f"{score:.3f}"


def _parse_crop(text: str) -> Crop:
    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"--crop {text}: give four numbers, x,y,width,height") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise UserError(f"--crop {text}: x, y from 0 and a size from 1")
    return Crop(x, y, width, height)


main = Command(SheetConfig, run, name="lasr sidebyside", about=__doc__, positional="evaluation")

if __name__ == "__main__":
    sys.exit(main())
