"""Upscale a list of files: one at a time, with progress; a failed picture stops no other."""

from pathlib import Path

from lasr.cli import progress
from lasr.device import pick_device
from lasr.errors import UserError
from lasr.pictures.find import check_regular
from lasr.pictures.read import picture_size, read_picture
from lasr.terminal.output import say
from lasr.weights.locate import Located
from trainer.models.load import load_model
from trainer.upscale.config import UpscaleConfig
from trainer.upscale.engines import make_engine
from trainer.upscale.picture import Upscaling, target, upscale_picture
from trainer.upscale.results import enlargement, is_done, software_of
from trainer.upscale.tiles import Tiling


def start(located: Located, config: UpscaleConfig) -> Upscaling:
    """Load the network. Raises UserError: weights or engine do not work, or --scale is too much."""
    device = pick_device(config.device)
    model = load_model(located)
    if config.scale:
        target(1, 1, model.scale, config)
    engine = make_engine(model.fitted(), device, config.engine, config.precision, model.half)
    tiling = Tiling.on(device, config.tile, config.overlap, config.wrap)
    return Upscaling(engine, model.scale, tiling, config)


def upscale_files(results: dict[Path, Path], located: Located, config: UpscaleConfig) -> None:
    """Upscale each key of `results` into its value; print how many were done.

    Results that exist already are skipped. Raises UserError at the end, naming what failed.
    """
    upscaling = start(located, config)
    scale = upscaling.scale
    pixels = {path: network_pixels(path, scale, config) for path in results}
    failed: list[str] = []
    skipped = 0
    with progress(sum(pixels.values()) // 1000, "upscale", "kpx") as bar:
        before = 0

        def show(done: int) -> None:
            bar.update((before + done) // 1000 - bar.n)

        for number, (path, result) in enumerate(results.items(), start=1):
            bar.set_postfix_str(f"{number}/{len(results)} {path.name}", refresh=False)
            try:
                check_regular(path)
                software = software_of(located.identity, path, scale, config)
                if is_done(result, software, config.overwrite):
                    skipped += 1
                else:
                    picture = read_picture(path, config.max_pixels)
                    upscale_picture(upscaling, picture, result, software, show)
            except (UserError, OSError) as error:
                text = str(error)
                failed.append(text if str(path) in text else f"{path}: {text}")
            before += pixels[path]
            show(0)
    upscaled = len(results) - len(failed) - skipped
    existing = f", {skipped} existed already" if skipped else ""
    said = f"upscaled: {upscaled} of {len(results)}{existing}, {enlargement(scale, config)}"
    say(f"{said}, in {config.out}")
    if failed:
        raise UserError(f"{len(failed)} of {len(results)} pictures failed: {'. '.join(failed)}")


def network_pixels(path: Path, scale: int, config: UpscaleConfig) -> int:
    """Pixels of a picture that the network is given in all passes; 0 if it cannot be upscaled.

    By the header: of a picture that is stored on its side, --size may mean something else.
    """
    try:
        width, height = picture_size(path)
        passes = target(width, height, scale, config).passes
    except UserError:  # reported when the picture is read
        return 0
    return sum(int(scale ** (2 * n)) for n in range(passes)) * width * height
