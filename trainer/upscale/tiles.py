"""Pictures of any size through a network, one tile at a time."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lasr.errors import UserError
from schemas.manifest import SCALE
from trainer.upscale.engines import Engine, torch_engine

log = logging.getLogger(__name__)

# With weights of Real-ESRGAN an answer changes where the picture is cut by at most 3/255 beyond 48
# pixels, 13/255 beyond 32 and 76/255 beyond 4 (on fur): they look far around.
TILE, OVERLAP = 512, 48
SMALLEST_TILE = 16
_LIT = 0.05  # mean of a tile that cannot come out black
_VISIBLE = 0.5 / 255  # alpha below it is transparent, and its colour of no account


@dataclass
class Tiling:
    """How a picture is cut. `tile` is halved when memory runs out, and stays so."""

    tile: int = TILE  # side of what a tile gives, in pixels of the input
    overlap: int = OVERLAP  # pixels of surroundings that it sees on each side

    def halve(self) -> None:
        """Raises UserError where the tiles are at their smallest."""
        if self.tile // 2 < SMALLEST_TILE:
            raise UserError("memory runs out even with the smallest tiles; close other programs")
        self.tile //= 2
        log.warning("memory ran out: going on with --tile %d", self.tile)


@torch.inference_mode()
def enlarge(
    engine: Engine,
    pixels: np.ndarray,
    scale: int,
    dtype: type[np.unsignedinteger],
    tiling: Tiling,
    on_tile: Callable[[int], None] = lambda done: None,
) -> Iterator[np.ndarray]:
    """The enlarged picture in strips of rows, h' x (scale w) x c each, of `dtype`.

    pixels: h x w x c as in `Picture`. Memory holds one strip and what the engine needs for one
    tile. on_tile is told after each tile how many pixels of the input are done.
    Raises UserError: an answer that is not finite, or black where the picture is not; no memory.
    """
    height, width, channels = pixels.shape
    top = 0
    while top < height:
        bottom = min(top + tiling.tile, height)
        strip = np.empty((scale * (bottom - top), scale * width, channels), dtype)
        try:
            for left in range(0, width, tiling.tile):
                right = min(left + tiling.tile, width)
                box = top, bottom, left, right
                answer = _tile(engine, pixels, box, scale, tiling)
                strip[:, scale * left : scale * right] = _rounded(answer, dtype)
                on_tile(top * width + (bottom - top) * right)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            torch.cuda.empty_cache()
        else:
            yield strip
            top = bottom
            continue
        tiling.halve()  # outside `except`, whose traceback keeps the tensors alive


def upscale(network: nn.Module, picture: Tensor, tile: int = TILE) -> Tensor:
    """(3, h, w) in [0, 1] to (3, 4h, 4w) in [0, 1] rounded to 16 bit, tile by tile.

    For a x4 network where it stands. Raises UserError as `enlarge` does.
    """
    parameter = next(network.parameters())
    engine = torch_engine(network, parameter.device, parameter.dtype)
    pixels = _rounded(picture.permute(1, 2, 0).cpu(), np.uint16)
    strips = [s.astype(np.float32) for s in enlarge(engine, pixels, SCALE, np.uint16, Tiling(tile))]
    return torch.from_numpy(np.concatenate(strips)).permute(2, 0, 1) / 65_535


def _tile(
    engine: Engine, pixels: np.ndarray, box: tuple[int, int, int, int], scale: int, tiling: Tiling
) -> Tensor:
    """The answer for the box of the picture, h x w x c in [0, 1]."""
    top, bottom, left, right = box
    first, last = _window(top, bottom, pixels.shape[0], tiling)
    start, stop = _window(left, right, pixels.shape[1], tiling)
    part = pixels[first:last, start:stop].astype(np.float32) / np.iinfo(pixels.dtype).max
    enlarged = _channels(engine, torch.from_numpy(part).permute(2, 0, 1)[None], scale)
    return enlarged[
        0,
        :,
        scale * (top - first) : scale * (bottom - first),
        scale * (left - start) : scale * (right - start),
    ].permute(1, 2, 0)


def _window(start: int, stop: int, side: int, tiling: Tiling) -> tuple[int, int]:
    """What a tile sees along one axis. At the border it moves inwards: all have one size, which
    compiled networks and tuned convolutions are made for."""
    size = min(tiling.tile + 2 * tiling.overlap, side)
    first = min(max(start - tiling.overlap, 0), side - size)
    return first, first + size


def _channels(engine: Engine, picture: Tensor, scale: int) -> Tensor:
    """(1, c, h, w) in [0, 1] to (1, c, s h, s w) in [0, 1], c as in `Picture`."""
    channels = picture.shape[1]
    if channels == 1:
        return _checked(engine, picture.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    if channels == 3:
        return _checked(engine, picture)
    # Colours enter premultiplied: what is invisible must not leak into what is seen.
    colours, alpha = picture[:, :-1], picture[:, -1:]
    lowest, highest = alpha.aminmax()
    if lowest == highest:  # wholly opaque or transparent: exactly so afterwards
        opacity = lowest.expand(1, 1, scale * alpha.shape[2], scale * alpha.shape[3])
    else:
        opacity = _channels(engine, alpha, scale)
    light = _channels(engine, colours * alpha, scale)
    colours = torch.where(opacity > _VISIBLE, light / opacity, 0).clamp(0, 1)
    return torch.cat((colours, opacity), dim=1)


def _checked(engine: Engine, picture: Tensor) -> Tensor:
    answer = engine(picture.contiguous())
    if not torch.isfinite(answer).all():
        raise UserError(
            "the network's answer is not finite: an overflow of float16 (take --precision float32)"
            " or broken weights"
        )
    answer = answer.clamp_(0, 1)
    if picture.mean() > _LIT and not answer.any():
        raise UserError(
            "the network's answer is black and the picture is not: broken weights, or an overflow"
            " of float16 (take --precision float32)"
        )
    return answer


def _rounded(values: Tensor, dtype: type[np.unsignedinteger]) -> np.ndarray:
    rounded: np.ndarray = (values * float(np.iinfo(dtype).max)).round().numpy().astype(dtype)
    return rounded


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "failed to allocate")
    return any(word in str(error).lower() for word in words)  # the CPU's allocator, ONNX Runtime
