"""Upscale a list of files: one at a time, with progress; a failed picture stops no other."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lasr.cli import progress
from lasr.device import ahead, pick_device
from lasr.errors import UserError
from lasr.pictures.find import check_regular
from lasr.pictures.read import Picture, picture_size, read_picture
from lasr.pictures.samples import Metadata
from lasr.pictures.write import check_format, save_picture
from lasr.terminal.output import say
from lasr.terminal.summary import counted
from lasr.weights.locate import Located
from trainer.models.load import load_model
from trainer.upscale.config import UpscaleConfig
from trainer.upscale.engines import Engine, make_engine
from trainer.upscale.results import is_done
from trainer.upscale.tiles import Tiling, upscale_array, upscale_strips


def upscale_files(results: dict[Path, Path], located: Located, config: UpscaleConfig) -> None:
    """Upscale each key of `results` into its value; print how many were done.

    Results that exist already are skipped. Raises UserError at the end, naming what failed.
    """
    device = pick_device(config.device)
    model = load_model(located)
    engine = make_engine(model.fitted(), device, config.engine, config.precision, model.half)
    tiling = Tiling.on(device, config.tile, config.overlap)
    total_scale = model.scale**config.passes
    growth = sum(model.scale ** (2 * n) for n in range(config.passes))
    pixels = {path: growth * count for path, count in pixel_counts(results).items()}
    failed: list[str] = []
    skipped = 0
    with progress(sum(pixels.values()) // 1000, "upscale", "kpx") as bar:
        before = 0

        def show(done: int) -> None:
            bar.update((before + done) // 1000 - bar.n)

        for number, (path, target) in enumerate(results.items(), start=1):
            bar.set_postfix_str(f"{number}/{len(results)} {path.name}", refresh=False)
            try:
                check_regular(path)
                software = f"LA-SR {located.identity} x{total_scale} of {_digest(path)}"
                software += ", stripped" if config.strip else ""
                if is_done(target, software, config.overwrite):
                    skipped += 1
                else:
                    picture = read_picture(path, config.max_pixels)
                    check_format(picture, total_scale, config.format)
                    scales = [model.scale] * config.passes
                    upscale_picture(
                        engine, scales, picture, target, tiling, software, show, config.strip
                    )
            except (UserError, OSError) as error:
                text = str(error)
                failed.append(text if str(path) in text else f"{path}: {text}")
            before += pixels[path]
            show(0)
    upscaled = len(results) - len(failed) - skipped
    existing = f", {skipped} existed already" if skipped else ""
    say(f"upscaled: {upscaled} of {len(results)}{existing}, x{total_scale}, in {config.out}")
    if failed:
        of = counted(len(results), "picture")
        raise UserError(f"{len(failed)} of {of} failed: {'. '.join(failed)}")


def upscale_picture(
    engine: Engine,
    scales: list[int],
    picture: Picture,
    target: Path,
    tiling: Tiling,
    software: str,
    on_tile: Callable[[int], None] = lambda done: None,
    strip: bool = False,
) -> None:
    """Upscale one picture into the file `target`, once for each scale, with 16 bits in between.

    on_tile: called after each tile with the input pixels done so far, over all passes.
    strip: leave out EXIF, XMP and resolution.
    """
    pixels, dtype, done = picture.planes, picture.pixels.dtype.type, 0

    def on_pass(tile_done: int) -> None:
        on_tile(done + tile_done)

    for scale in scales[:-1]:
        size = pixels.shape[0] * pixels.shape[1]
        pixels = upscale_array(engine, pixels, scale, tiling, np.uint16, on_pass)
        done += size
    height, width, channels = pixels.shape
    shape = scales[-1] * height, scales[-1] * width, channels
    strips = upscale_strips(engine, pixels, scales[-1], tiling, dtype, on_pass)
    kept = picture.metadata
    metadata = Metadata(profile=kept.profile) if strip else kept
    with ahead(strips, 1) as computed:  # the next strip, while this one is compressed
        save_picture(target, computed, shape, np.dtype(dtype), software, metadata)


def pixel_counts(paths: Iterable[Path]) -> dict[Path, int]:
    """The number of pixels of each picture, from its header; 0 if it cannot be read."""

    def count(path: Path) -> int:
        try:
            width, height = picture_size(path)
        except UserError:  # reported when the picture is read
            return 0
        return width * height

    return {path: count(path) for path in paths}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
