"""Colours as in the input: its low frequencies take the place of the upscaled picture's.

The wavelet colour correction of StableSR (Wang et al., "Exploiting diffusion prior for real-world
image super-resolution", IJCV 2024): both pictures are split by an a-trous transform (Holschneider
et al. 1989), whose last low-pass is exchanged. That is to add the low-pass of a difference, which
is computed at the input's size here: there, three levels are what five are at x4.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from trainer.upscale.resample import windows

LEVELS = 3
REACH = 2**LEVELS + 1  # input pixels that a pixel's correction depends on: sum of 2^i, enlarging
_BLOCK = 256  # rows of the result
_LEAST = 1e-3  # weight: fewer visible pixels say nothing of the colour


def with_colours_of(
    source: np.ndarray, strips: Iterable[np.ndarray], scale: int
) -> Iterator[np.ndarray]:
    """The strips of an upscaled picture with the low frequencies of `source`.

    source: h x w x c, uint8 or uint16. strips: uint16, (scale w) x c wide. Colours of transparent
    pixels count by their alpha; alpha itself stays as it is.
    """
    height, colours = len(source), source.shape[2] - (source.shape[2] in (2, 4))
    step = max(_BLOCK // scale, 1)
    blocks = [(top, min(top + step, height)) for top in range(0, height, step)]
    seen = [(max(top - REACH, 0), min(bottom + REACH, height)) for top, bottom in blocks]
    upscaled = windows(strips, [(scale * first, scale * last) for first, last in seen])
    for (top, bottom), (first, last), rows in zip(blocks, seen, upscaled, strict=True):
        wanted = _floats(source[first:last])
        shrunk = _floats(_resized(rows, (last - first, source.shape[1]), cv2.INTER_AREA))
        weight = np.ones((*wanted.shape[:2], 1), np.float32)
        if colours < source.shape[2]:
            weight = wanted[..., -1:] * shrunk[..., -1:]
        difference = _low_pass((wanted - shrunk)[..., :colours] * weight)
        difference /= np.maximum(_low_pass(weight), _LEAST)
        size = scale * (last - first), scale * source.shape[1]
        correction = _resized(difference, size, cv2.INTER_LINEAR)
        inside = slice(scale * (top - first), scale * (bottom - first))
        result = rows[inside].copy()
        corrected = rows[inside, :, :colours] + 65_535 * correction[inside]
        result[..., :colours] = np.rint(corrected.clip(0, 65_535))
        yield result


def _low_pass(values: np.ndarray) -> np.ndarray:
    """The last low-pass of the transform, h x w x c float32: [1 2 1] / 4, spread by 1, 2, 4."""
    for level in range(LEVELS):
        kernel = np.zeros(2 ** (level + 1) + 1, np.float32)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        blurred = cv2.sepFilter2D(values, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        values = blurred.reshape(values.shape)  # OpenCV drops an axis of one channel
    return values


def _resized(values: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """values: h x w x c. size: height and width."""
    return cv2.resize(values, size[::-1], interpolation=how).reshape(*size, values.shape[2])


def _floats(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
