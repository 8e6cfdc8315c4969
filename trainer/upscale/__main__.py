"""Enlarge pictures with a trained network.

python -m trainer.upscale --weights data/runs/patches/model.safetensors photo.jpg --out enlarged
python -m trainer.upscale --weights realesrgan-x4plus folder/ --out enlarged --passes 2

Any picture: 8 or 16 bit, grey, palette, transparent, CMYK; turned upright; ICC profiles are kept.
A second call does what is missing. Any weights that spandrel reads, of any scale.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, Field

from lasr.cli import Command, progress
from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.pictures.find import find_pictures, pixel_counts, targets
from lasr.pictures.read import Format, Picture, check_format, made_by, read_picture, save_picture
from lasr.weights.locate import locate
from trainer.models.load import load_model
from trainer.upscale.engines import Engine, EngineName, Precision, make_engine
from trainer.upscale.tiles import OVERLAP, SMALLEST_TILE, TILE, Tiling, enlarge


class UpscaleConfig(BaseModel):
    """What `trainer.upscale` takes."""

    inputs: list[str] = Field(
        min_length=1, description="pictures, folders (searched downwards), globs, .txt lists"
    )
    weights: str = Field(description="a run's model.safetensors, any SR network's file, or a name")
    out: Path = Field(description="folder for the enlarged pictures; subfolders keep their places")
    passes: int = Field(1, ge=1, le=3, description="2 enlarges twice: x16 (appendix E.2)")
    format: Format = Field("png", description="of the files; jpg and webp are 8 bit")
    tile: int = Field(
        TILE, ge=SMALLEST_TILE, description="side of the squares enlarged one by one; bounds memory"
    )
    overlap: int = Field(OVERLAP, ge=0, description="pixels around a tile that it sees as well")
    engine: EngineName = Field("auto", description="what runs the network, see docs/upscale.md")
    precision: Precision = Field("auto", description="auto is float16 on a GPU, else float32")
    device: Device = Field("auto", description="where the network runs")
    overwrite: bool = Field(False, description="enlarge again what is there already")


def upscale_picture(
    engine: Engine,
    scale: int,
    picture: Picture,
    target: Path,
    passes: int,
    tiling: Tiling,
    record: str,
    on_tile: Callable[[int], None] = lambda done: None,
) -> None:
    """Enlarge one picture into the file `target`. Between two passes it has 16 bits.

    on_tile is told how many pixels of the network's input are done, over all passes.
    """
    dtype = picture.pixels.dtype.type
    done = 0
    for remaining in reversed(range(passes)):
        height, width, channels = picture.pixels.shape
        strips = enlarge(
            engine,
            picture.pixels,
            scale,
            np.uint16 if remaining else dtype,
            tiling,
            partial(_add, on_tile, done),
        )
        done += height * width
        if remaining:
            picture = replace(picture, pixels=np.concatenate(list(strips)))
        else:
            shape = scale * height, scale * width, channels
            save_picture(target, strips, shape, np.dtype(dtype), picture.profile, record)


def _add(on_tile: Callable[[int], None], before: int, done: int) -> None:
    on_tile(before + done)


def run(config: UpscaleConfig) -> None:
    """Enlarge every picture; one that fails is named at the end and stops no other."""
    device = pick_device(config.device)
    found = find_pictures(config.inputs, without=config.out)
    goals = targets(found, config.out, config.format)
    originals = {_file(path) for path in found if path.exists()}
    located = locate(config.weights, "sr")
    model = load_model(located)
    growth = sum(model.scale ** (2 * n) for n in range(config.passes))
    costs = {path: growth * pixels for path, pixels in pixel_counts(list(found)).items()}
    total = model.scale**config.passes
    engine = make_engine(model.fitted(), device, config.engine, config.precision, model.half)
    tiling = Tiling(config.tile, config.overlap)
    failed: list[str] = []
    skipped = 0
    with progress(sum(costs.values()) // 1000, "upscale", "kpx") as bar:
        before = 0

        def show(done: int) -> None:
            bar.update((before + done) // 1000 - bar.n)

        for number, (path, target) in enumerate(goals.items(), start=1):
            bar.set_postfix_str(f"{number}/{len(goals)} {path.name}", refresh=False)
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                record = f"LA-SR {located.identity} x{total} of {digest}"
                if _is_done(target, record, originals, config.overwrite):
                    skipped += 1
                else:
                    picture = read_picture(path)
                    check_format(picture, total, config.format)
                    upscale_picture(
                        engine, model.scale, picture, target, config.passes, tiling, record, show
                    )
            except (UserError, OSError) as error:
                text = str(error)
                failed.append(text if str(path) in text else f"{path}: {text}")
            before += costs[path]
            show(0)
    enlarged = len(goals) - len(failed) - skipped
    there = f", {skipped} were there already" if skipped else ""
    print(f"enlarged: {enlarged} of {len(goals)}{there}, x{total}, in {config.out}")
    if failed:
        raise UserError(f"{len(failed)} failed: " + "; ".join(failed))


def _file(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _is_done(target: Path, record: str, originals: set[tuple[int, int]], overwrite: bool) -> bool:
    """Whether `target` holds this result already. Raises UserError: it holds something else."""
    if not target.exists():
        return False
    if _file(target) in originals:
        raise UserError(f"{target}: the result would overwrite an input; choose another --out")
    if overwrite:
        return False
    if made_by(target) == record:
        return True
    raise UserError(
        f"{target}: stands there already, from other weights, passes or picture; choose another"
        " --out, or --overwrite it"
    )


main = Command(
    UpscaleConfig, run, name="lasr upscale", about=__doc__, positional="inputs", weights=True
)

if __name__ == "__main__":
    sys.exit(main())
