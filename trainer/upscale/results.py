"""What tells results apart, and whether a result exists already."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from lasr.errors import UserError
from lasr.pictures.write import software_tag
from trainer.upscale.config import UpscaleConfig


def file_ids(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """The device and inode of each path that exists: two links to one file have the same."""
    return {_id(path) for path in paths if path.exists()}


def check_targets(results: dict[Path, Path]) -> None:
    """Refuse results that are hard links to inputs. Raises UserError.

    results: as `lasr.pictures.write.result_paths` returns it.
    """
    inputs = file_ids(results)
    for target in results.values():
        if target.exists() and _id(target) in inputs:
            raise UserError(
                f"{target}: the result would overwrite an input", "choose another --out"
            )


def enlargement(scale: int, config: UpscaleConfig) -> str:
    """What results are in words, such as x4 or `inside 3840x2160`. scale: the network's."""
    if config.size or config.scale:
        text = f"inside {config.size}" if config.size else f"x{config.scale:.15g}"
        return f"{text} in {config.passes} passes" if config.passes else text
    return f"x{scale ** (config.passes or 1)}"


def software_of(identity: str, source: Path, scale: int, config: UpscaleConfig) -> str:
    """The tag Software of a result: all that its pixels and metadata depend on.

    identity: of the weights. source: the picture's file. scale: the network's.
    """
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    options = {
        "alpha by lanczos": config.alpha == "lanczos",
        "colours fixed": config.colour_fix,
        "wrapped": config.wrap,
        "stripped": config.strip,
    }
    chosen = "".join(f", {option}" for option, is_chosen in options.items() if is_chosen)
    return f"LA-SR {identity} {enlargement(scale, config)} of {digest}{chosen}"


def is_done(target: Path, software: str, overwrite: bool) -> bool:
    """Whether `target` is a result with this Software tag.

    False if it has to be made or, with `overwrite`, made again. Raises UserError: `target` is a
    result of other weights, options or picture, and `overwrite` is not set.
    """
    if overwrite or not target.exists():
        return False
    if software_tag(target) == software:
        return True
    raise UserError(
        f"{target}: exists already, from other weights, options or picture",
        "choose another --out, or replace it with --overwrite",
    )


def _id(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino
