"""Upscale pictures of any size, one tile at a time."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lasr.errors import UserError, is_out_of_memory
from schemas.manifest import SCALE
from trainer.upscale.config import GPU_TILE, OVERLAP, SMALLEST_TILE, TILE
from trainer.upscale.engines import Engine, torch_engine
from trainer.upscale.resample import VISIBLE

log = logging.getLogger(__name__)

_BRIGHT = 0.05  # mean of a tile that cannot become black
_FIX = "if float16 overflows, use --precision float32; otherwise the weights are broken"


@dataclass
class Tiling:
    """How a picture is cut into tiles."""

    tile: int = TILE  # largest side of a tile in input pixels; halved when memory runs out
    overlap: int = OVERLAP  # pixels around a tile that the network sees on each side
    wrap: bool = False  # beyond a border the network sees the opposite one

    @classmethod
    def on(
        cls, device: torch.device, tile: int | None, overlap: int, wrap: bool = False
    ) -> "Tiling":
        """With the device's tiles if `tile` is None."""
        return cls(tile or (GPU_TILE if device.type == "cuda" else TILE), overlap, wrap)

    def step(self, side: int) -> int:
        """The side of the tiles along an axis of so many pixels: equal tiles, but for the last.

        720 pixels are two tiles of 360 and not 512 and 208, each with the surroundings of 512.
        """
        return -(-side // -(-side // self.tile))

    def window(self, side: int, margin: int = 0) -> int:
        """What the network sees along an axis of so many pixels: a tile and its surroundings."""
        size = self.step(side + 2 * margin) + 2 * self.overlap
        return size if self.wrap else min(size, side)

    def halve(self) -> None:
        """Halve the tiles, for good. Raises UserError: they are as small as allowed."""
        if self.tile // 2 < SMALLEST_TILE:
            raise UserError(
                "out of memory even with the smallest tiles", "close other programs and try again"
            )
        self.tile //= 2
        log.warning("out of memory: continuing with --tile %d", self.tile)


def upscale_array(
    engine: Engine,
    pixels: np.ndarray,
    scale: int,
    tiling: Tiling | None = None,
    dtype: type[np.unsignedinteger] | None = None,
    on_tile: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Upscale an array: h x w x c to (scale h) x (scale w) x c.

    Args:
        engine: from `make_engine`, of a network that enlarges by `scale`.
        pixels: uint8 or uint16; c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        tiling: default `Tiling()`.
        dtype: of the result; default that of `pixels`.
        on_tile: as in `upscale_strips`.

    Raises ValueError: another shape or dtype. UserError: as `upscale_strips`.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3 or pixels.shape[2] > 4:
        raise ValueError(
            f"{pixels.dtype} of shape {pixels.shape}: expected h x w x 1 to 4, uint8 or uint16"
        )
    strips = upscale_strips(
        engine, pixels, scale, tiling or Tiling(), dtype or pixels.dtype.type, on_tile
    )
    return np.concatenate(list(strips))


@torch.inference_mode()
def upscale_strips(
    engine: Engine,
    pixels: np.ndarray,
    scale: int,
    tiling: Tiling,
    dtype: type[np.unsignedinteger],
    on_tile: Callable[[int], None] = lambda done: None,
    margin: int = 0,
) -> Iterator[np.ndarray]:
    """Yield the upscaled picture in strips of rows, h' x (scale w) x c each, of `dtype`.

    Memory holds one strip and what the engine needs for one tile. On a GPU a tile is checked and
    rounded there, and copied back while the next one is computed.

    Args:
        pixels: h x w x c as in `upscale_array`.
        on_tile: called after each tile with the number of input pixels done.
        margin: pixels around a wrapped picture that are upscaled, too: the opposite borders again.

    Raises UserError: the network's output is not finite, or black where the picture is not, or
    memory runs out with the smallest tiles.
    """
    assert tiling.wrap or not margin
    height, width, channels = pixels.shape
    rows, columns = height + 2 * margin, width + 2 * margin
    top, end, right_end = -margin, height + margin, width + margin
    while top < end:
        bottom, step = min(top + tiling.step(rows), end), tiling.step(columns)
        strip = np.empty((scale * (bottom - top), scale * columns, channels), dtype)
        try:
            launched: deque[tuple[int, int, _Tile]] = deque()
            for left in range(-margin, right_end, step):
                right = min(left + step, right_end)
                part = _Part((top, bottom), (left, right), margin)
                launched.append((left, right, _launch(engine, pixels, part, scale, tiling, dtype)))
                while len(launched) > 1 or (launched and right == right_end):
                    start, stop, tile = launched.popleft()
                    start, stop = start + margin, stop + margin
                    strip[:, scale * start : scale * stop] = tile.read()
                    done = (top + margin) * columns + (bottom - top) * stop
                    on_tile(done * height * width // (rows * columns))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            launched.clear()
            torch.cuda.empty_cache()
        else:
            yield strip
            top = bottom
            continue
        tiling.halve()  # outside `except`: the traceback there keeps the tensors alive


def upscale(network: nn.Module, picture: Tensor, tile: int = TILE) -> Tensor:
    """Upscale (3, h, w) in [0, 1] to (3, 4h, 4w) in [0, 1], rounded to 16 bit, tile by tile.

    network: x4; it runs on its own device and in its own dtype. Raises UserError as
    `upscale_strips` does.
    """
    parameter = next(network.parameters())
    engine = torch_engine(network, parameter.device, parameter.dtype)
    pixels = _round(picture.permute(1, 2, 0).cpu(), np.uint16)
    upscaled = upscale_array(engine, pixels, SCALE, Tiling(tile)).astype(np.float32)
    return torch.from_numpy(upscaled).permute(2, 0, 1) / 65_535


@dataclass(frozen=True)
class _Tile:
    """The output for a tile, on its way from the device.

    pixels: h x w x c. sound: whether each call of the engine gave finite numbers, and whether none
    was black that should not be, (calls, 2). copied: None on the CPU.
    """

    pixels: Tensor
    sound: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> np.ndarray:
        """Wait for the copy. Raises UserError: an output that cannot be right."""
        if self.copied:
            self.copied.synchronize()
        finite, shown = self.sound.all(dim=0).tolist()
        if not finite:
            raise UserError("the network's output is not finite", _FIX)
        if not shown:
            raise UserError("the network's output is black and the picture is not", _FIX)
        pixels: np.ndarray = self.pixels.numpy()
        return pixels


@dataclass(frozen=True)
class _Part:
    """The rows and columns of a tile; negative ones and those beyond are of the margin."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    margin: int


def _launch(
    engine: Engine,
    pixels: np.ndarray,
    part: _Part,
    scale: int,
    tiling: Tiling,
    dtype: type[np.unsignedinteger],
) -> _Tile:
    """Start to compute the output for a part of the picture."""
    (top, bottom), (left, right) = part.rows, part.columns
    first, last = _window(top, bottom, pixels.shape[0], part.margin, tiling)
    start, stop = _window(left, right, pixels.shape[1], part.margin, tiling)
    if tiling.wrap:
        window = pixels.take(range(first, last), 0, mode="wrap")
        window = window.take(range(start, stop), 1, mode="wrap")
    else:
        window = pixels[first:last, start:stop]
    crop = window.astype(np.float32) / np.iinfo(pixels.dtype).max
    sound: list[Tensor] = []
    picture = torch.from_numpy(crop).permute(2, 0, 1)[None]
    upscaled = _upscale_channels(engine, picture, scale, sound)[
        0,
        :,
        scale * (top - first) : scale * (bottom - first),
        scale * (left - start) : scale * (right - start),
    ]
    checks = torch.stack(sound)
    if not upscaled.is_cuda:  # Apple's GPUs have no 16-bit integers without a sign
        upscaled, checks = upscaled.cpu(), checks.cpu()
    rounded = (upscaled.permute(1, 2, 0) * float(np.iinfo(dtype).max)).round()
    rounded = rounded.to(getattr(torch, np.dtype(dtype).name)).contiguous()
    if not rounded.is_cuda:
        return _Tile(rounded, checks, None)
    # Without waiting: into pinned memory.
    rounded, checks = (tensor.to("cpu", non_blocking=True) for tensor in (rounded, checks))
    copied = torch.cuda.Event()
    copied.record()
    return _Tile(rounded, checks, copied)


def _window(start: int, stop: int, side: int, margin: int, tiling: Tiling) -> tuple[int, int]:
    """The range that the network sees along one axis for a tile at start..stop.

    At the border of the picture the window moves inwards instead of shrinking: windows of one size
    suit compiled networks and tuned convolutions. That of a wrapped picture goes on beyond it.
    """
    size = tiling.window(side, margin)
    if tiling.wrap:
        first = min(start - tiling.overlap, side + margin + tiling.overlap - size)
    else:
        first = min(max(start - tiling.overlap, 0), side - size)
    return first, first + size


def _upscale_channels(engine: Engine, picture: Tensor, scale: int, sound: list[Tensor]) -> Tensor:
    """(1, c, h, w) in [0, 1] to (1, c, s h, s w) in [0, 1], c as in `upscale_array`.

    sound: gets what `_run` found.
    """
    channels = picture.shape[1]
    if channels == 1:
        return _run(engine, picture.expand(-1, 3, -1, -1), sound).mean(1, keepdim=True)
    if channels == 3:
        return _run(engine, picture, sound)
    # Colours are premultiplied, so that the colour of invisible pixels does not leak.
    colours, alpha = picture[:, :-1], picture[:, -1:]
    lowest, highest = alpha.aminmax()
    constant = bool(lowest == highest)
    opacity = alpha if constant else _upscale_channels(engine, alpha, scale, sound)
    light = _upscale_channels(engine, colours * alpha, scale, sound)
    if constant:  # stays exactly so
        opacity = light.new_full((1, 1, *light.shape[2:]), float(lowest))
    colours = torch.where(opacity > VISIBLE, light / opacity, 0).clamp(0, 1)
    return torch.cat((colours, opacity), dim=1)


def _run(engine: Engine, picture: Tensor, sound: list[Tensor]) -> Tensor:
    """The engine's output, clamped to [0, 1].

    Adds to `sound` whether it was finite, and whether it is not black where the picture is bright.
    """
    output = engine(picture.contiguous())
    finite = torch.isfinite(output).all()
    output = output.clamp_(0, 1)
    bright = bool(picture.mean() > _BRIGHT)
    shown = output.any() if bright else torch.ones_like(finite)
    sound.append(torch.stack((finite, shown)))
    return output


def _round(values: Tensor, dtype: type[np.unsignedinteger]) -> np.ndarray:
    rounded: np.ndarray = (values * float(np.iinfo(dtype).max)).round().numpy().astype(dtype)
    return rounded
