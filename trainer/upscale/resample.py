"""Strips of an upscaled picture, brought to the size that was asked for and given an alpha channel.

Pillow's antialiased Lanczos-3, of the values as they are stored: in gamma light, as networks are
trained and judged. docs/upscale.md says why.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

LANCZOS = 3  # its reach, in pixels of the smaller picture
VISIBLE = 0.5 / 255  # pixels with less alpha are transparent, and their colour does not matter
STRIP = 256  # rows
_SURROUNDINGS = 48  # pixels of a wrapped picture in which the nearest visible one is looked for


@dataclass(frozen=True)
class Frame:
    """The size of a picture, and of what its strips hold around it on all sides.

    Strips have height + 2 margin rows in all, of width + 2 margin pixels.
    """

    height: int
    width: int
    margin: int = 0

    def times(self, scale: int) -> "Frame":
        """The frame of the picture, enlarged."""
        return Frame(scale * self.height, scale * self.width, scale * self.margin)


def windows(
    strips: Iterable[np.ndarray], ranges: Iterable[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """The rows first to last, exclusive, of each range, of a picture that comes in strips.

    Neither end of a range is before that of the range before it. Memory holds a range and a strip.
    """
    source = iter(strips)
    held: deque[np.ndarray] = deque()
    top = bottom = 0
    for first, last in ranges:
        while bottom < last:
            held.append(next(source))
            bottom += len(held[-1])
        while top + len(held[0]) <= first:
            top += len(held.popleft())
        start, parts = top, []
        for strip in held:
            parts.append(strip[max(first - start, 0) : last - start])
            start += len(strip)
        yield np.concatenate(parts) if len(parts) > 1 else parts[0]


def fitted(
    strips: Iterable[np.ndarray], frame: Frame, size: tuple[int, int], dtype: type
) -> Iterator[np.ndarray]:
    """Resize a picture, leave out its margin, and round it to `dtype`.

    Args:
        strips: uint8 or uint16, h' x w' x c, c as in `upscale_array`. Lanczos sees the margin, so
            that the borders of a wrapped picture fit together.
        frame: of the strips.
        size: height and width of the result.
    """
    if size == (frame.height, frame.width):
        yield from _cropped(strips, frame, dtype)
        return
    step = frame.height / size[0]  # rows of the picture for each of the result
    reach = math.ceil(LANCZOS * max(step, 1)) + 1
    parts = [(top, min(top + STRIP, size[0])) for top in range(0, size[0], STRIP)]
    whole = frame.height + 2 * frame.margin
    ranges = [
        (
            max(math.floor(frame.margin + step * top) - reach, 0),
            min(math.ceil(frame.margin + step * bottom) + reach, whole),
        )
        for top, bottom in parts
    ]
    for (top, bottom), (first, _), rows in zip(parts, ranges, windows(strips, ranges), strict=True):
        start = frame.margin + step * top - first
        end = min(start + step * (bottom - top), len(rows))
        box = frame.margin, start, frame.margin + frame.width, end
        yield _rounded(_resized(_as_floats(rows), (size[1], bottom - top), box), dtype)


def with_alpha(
    strips: Iterable[np.ndarray], alpha: np.ndarray, size: tuple[int, int], wrap: bool
) -> Iterator[np.ndarray]:
    """Add an alpha channel to the strips of a picture of `size`: Lanczos-3 of the original's.

    alpha: h x w, uint8 or uint16. size: height and width.
    """
    (height, width), margin = alpha.shape, 0
    if wrap:
        margin = math.ceil(LANCZOS * max(height / size[0], width / size[1], 1)) + 1
        alpha = np.pad(alpha, margin, mode="wrap")
    plane = _as_floats(alpha)[..., None]
    top = 0
    for strip in strips:
        start, end = (margin + height * row / size[0] for row in (top, top + len(strip)))
        box = margin, start, margin + width, min(end, len(plane))
        opacity = _resized(plane, (size[1], len(strip)), box)
        yield np.concatenate([strip, _rounded(opacity, strip.dtype.type)], axis=2)
        top += len(strip)


def spread_colours(colours: np.ndarray, alpha: np.ndarray, wrap: bool) -> np.ndarray:
    """Give each invisible pixel the colour of the visible one nearest to it.

    So colours can be enlarged without regard to alpha: an invisible pixel may have any colour, and
    would leave a fringe. colours: h x w x c. alpha: h x w.
    """
    if alpha.all() or not alpha.any():
        return colours
    import cv2

    margin = _SURROUNDINGS if wrap else 0
    if wrap:
        around = ((margin, margin), (margin, margin))
        alpha = np.pad(alpha, around, mode="wrap")
        colours = np.pad(colours, (*around, (0, 0)), mode="wrap")
    hidden = (alpha == 0).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(
        hidden, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    position = np.zeros(labels.max() + 1, np.int64)  # of the visible pixel of each label
    visible = np.flatnonzero(hidden == 0)
    position[labels.reshape(-1)[visible]] = visible
    filled: np.ndarray = colours.reshape(-1, colours.shape[2])[position[labels]]
    height, width = alpha.shape
    return filled[margin : height - margin, margin : width - margin]


def _cropped(strips: Iterable[np.ndarray], frame: Frame, dtype: type) -> Iterator[np.ndarray]:
    top = 0
    columns = slice(frame.margin, frame.margin + frame.width)
    for strip in strips:
        first = max(frame.margin - top, 0)
        last = min(frame.margin + frame.height - top, len(strip))
        if first < last:
            rows = strip[first:last, columns]
            yield rows if rows.dtype == dtype else _rounded(_as_floats(rows), dtype)
        top += len(strip)


def _resized(
    pixels: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    """A box of h x w x c float32 in [0, 1] at width x height `size`; colours are premultiplied.

    Pillow's Lanczos sees the pixels around the box.
    """
    has_alpha = pixels.shape[2] in (2, 4)
    if has_alpha:
        pixels = np.concatenate([pixels[..., :-1] * pixels[..., -1:], pixels[..., -1:]], axis=2)
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels[..., channel])).resize(
                size, Image.Resampling.LANCZOS, box
            )
        )
        for channel in range(pixels.shape[2])
    ]
    resized = np.stack(planes, axis=2)
    if has_alpha:
        opacity = resized[..., -1:]
        colours = resized[..., :-1] / np.maximum(opacity, VISIBLE)
        resized[..., :-1] = np.where(opacity > VISIBLE, colours, 0)
    return resized


def _as_floats(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def _rounded(values: np.ndarray, dtype: type) -> np.ndarray:
    most = np.iinfo(dtype).max
    rounded: np.ndarray = np.rint(np.clip(values, 0, 1) * most).astype(dtype)
    return rounded
