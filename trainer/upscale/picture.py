"""One picture through the network, to the size, alpha and colours that were asked for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lasr.device import ahead
from lasr.errors import UserError
from lasr.pictures.read import Picture
from lasr.pictures.samples import Metadata
from lasr.pictures.write import check_format, save_picture
from trainer.upscale.colour import REACH, with_colours_of
from trainer.upscale.config import MAX_PASSES, UpscaleConfig
from trainer.upscale.engines import Engine
from trainer.upscale.resample import LANCZOS, Frame, fitted, spread_colours, with_alpha
from trainer.upscale.tiles import Tiling, upscale_array, upscale_strips


@dataclass(frozen=True)
class Upscaling:
    """What is done to every picture.

    scale: of the engine's network. config: its size, alpha, colours and metadata.
    """

    engine: Engine
    scale: int
    tiling: Tiling
    config: UpscaleConfig


@dataclass(frozen=True)
class Target:
    """How often the network is applied to a picture, and the result's size in pixels."""

    passes: int
    width: int
    height: int

    def total(self, scale: int) -> int:
        """What the network enlarges by, in all passes."""
        return int(scale**self.passes)


def target(width: int, height: int, scale: int, config: UpscaleConfig) -> Target:
    """What a picture of width x height becomes with a network that enlarges by `scale`.

    Raises UserError: the passes that are allowed do not enlarge as much as that.
    """
    wanted = config.scale
    if config.box:  # fits inside: the side that is short of room decides
        wanted = min(config.box[0] / width, config.box[1] / height)
    if wanted is None:
        total = scale ** (config.passes or 1)
        return Target(config.passes or 1, total * width, total * height)
    needed = next((n for n in range(1, MAX_PASSES + 1) if scale**n >= wanted - 1e-9), None)
    flag = "--size" if config.box else "--scale"
    if needed is None:
        raise UserError(
            f"{flag} asks for {wanted:.4g} times the size: {MAX_PASSES} passes of this network"
            f" give {scale**MAX_PASSES}",
            "ask for less",
        )
    if config.passes and config.passes < needed:
        raise UserError(
            f"{flag} asks for {wanted:.4g} times the size: --passes {config.passes} of this network"
            f" gives {scale**config.passes}",
            f"use --passes {needed}, or leave it out",
        )
    sides = (max(math.floor(wanted * side + 0.5), 1) for side in (width, height))
    return Target(config.passes or needed, *sides)


def upscale_picture(
    upscaling: Upscaling,
    picture: Picture,
    path: Path,
    software: str,
    on_tile: Callable[[int], None] = lambda done: None,
) -> None:
    """Upscale one picture into the file `path`, with 16 bits between the steps.

    on_tile: called after each tile with the input pixels done so far, over all passes. Raises
    UserError: the format or the passes do not allow it, or as `upscale_strips`.
    """
    config, dtype = upscaling.config, picture.pixels.dtype.type
    height, width = picture.pixels.shape[:2]
    aim = target(width, height, upscaling.scale, config)
    check_format(picture, (aim.width, aim.height), config.format)
    strips = _strips(upscaling, picture, aim, on_tile)
    channels = (1 if picture.is_grey else 3) + (picture.alpha is not None)
    kept = picture.metadata
    metadata = Metadata(profile=kept.profile) if config.strip else kept
    shape = aim.height, aim.width, channels
    with ahead(strips, 1) as computed:  # the next strip, while this one is compressed
        save_picture(path, computed, shape, np.dtype(dtype), software, metadata)


def _strips(
    upscaling: Upscaling, picture: Picture, aim: Target, on_tile: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The result in strips of rows, in the depth of the picture: network, colours, size, alpha."""
    config, scale, tiling = upscaling.config, upscaling.scale, upscaling.tiling
    source, dtype = picture.planes, picture.pixels.dtype.type
    by_lanczos = picture.alpha if config.alpha == "lanczos" else None
    if by_lanczos is not None:
        source = spread_colours(source[..., :-1], by_lanczos, config.wrap)
    height, width = source.shape[:2]
    total, size = aim.total(scale), (aim.height, aim.width)
    frame = Frame(height, width, _margin(config, size[0] / height))
    pixels, done = source, 0

    def on_pass(tile_done: int) -> None:
        on_tile(done + tile_done)

    for _ in range(aim.passes - 1):
        area = pixels.shape[0] * pixels.shape[1]
        pixels = upscale_array(upscaling.engine, pixels, scale, tiling, np.uint16, on_pass)
        done += area
    is_plain = frame.times(total) == Frame(*size) and not config.colour_fix
    margin = frame.margin * total // scale
    strips = upscale_strips(
        upscaling.engine, pixels, scale, tiling, dtype if is_plain else np.uint16, on_pass, margin
    )
    if config.colour_fix:
        around = ((frame.margin, frame.margin), (frame.margin, frame.margin), (0, 0))
        strips = with_colours_of(np.pad(source, around, mode="wrap"), strips, total)
    if not is_plain:
        strips = fitted(strips, frame.times(total), size, dtype)
    if by_lanczos is not None:
        strips = with_alpha(strips, by_lanczos, size, config.wrap)
    return strips


def _margin(config: UpscaleConfig, scale: float) -> int:
    """Pixels around a wrapped picture that the steps after the network look at.

    scale: of the result. Colours and size each look at what is around the pixels of the next step.
    """
    if not config.wrap:
        return 0
    resized = math.ceil(LANCZOS / scale) + 2 if config.scale or config.size else 0
    return resized + (REACH if config.colour_fix else 0)
