"""Rendered scenes: textured surfaces at known depths, seen through a lens and a sensor.

A scene shows three surfaces of one photograph, one above the other: far, middle and near. A surface
at depth z is seen z times smaller than it is, through a blur that grows with z, with noise that
grows with z; the whole picture is a JPEG. What the far surface looks like from depth 1 is known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lasr.pictures.find import find_pictures
from lasr.pictures.read import read_picture

WIDTH = 640  # of a scene, pixels
BANDS = ((4, 128), (2, 80), (1, 240))  # depth and height of each surface, from the top
SOURCE = WIDTH * BANDS[0][0]  # width of a photograph that covers the far surface
EDGE = 28  # rows of the far surface at its border that are not judged: half an LR patch
JPEG = 90


@dataclass(frozen=True)
class Scene:
    """A picture, H x W x 3 uint8; its distance, H x W float32; the far strip and its truth, x4."""

    picture: np.ndarray
    distance: np.ndarray
    strip: np.ndarray
    truth: np.ndarray


def sources(paths: Sequence[str]) -> list[np.ndarray]:
    """The photographs that are large enough for a far surface, reduced to its width."""
    photographs = []
    for path in find_pictures(paths):
        pixels = read_picture(path).pixels
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        height, width = pixels.shape[:2]
        if width >= SOURCE and height * SOURCE // width >= BANDS[0][0] * BANDS[0][1]:
            size = SOURCE, height * SOURCE // width
            photographs.append(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return photographs


def scenes(photographs: Sequence[np.ndarray], count: int, seed: int) -> Iterator[Scene]:
    """Scenes of the photographs in turn, each at random places of its photograph."""
    for number in range(count):
        yield render(photographs[number % len(photographs)], np.random.default_rng([seed, number]))


def render(photograph: np.ndarray, rng: np.random.Generator) -> Scene:
    """One scene of windows of a photograph."""
    bands, distances, truth = [], [], photograph
    for depth, height in BANDS:
        window = crop(photograph, depth * height, depth * WIDTH, rng)
        if depth == BANDS[0][0]:
            truth = window
        bands.append(seen(window, depth, rng))
        # Nearer towards the viewer within a surface, so that it is no plateau.
        ramp = np.linspace(depth, depth - 0.5, height, dtype=np.float32)[:, None]
        distances.append(np.broadcast_to((ramp - 0.5) / (BANDS[0][0] - 0.5), (height, WIDTH)))
    picture = as_jpeg(np.concatenate(bands))
    far, scale = BANDS[0][1], BANDS[0][0]
    strip = picture[EDGE : far - EDGE]
    return Scene(
        picture, np.concatenate(distances), strip, truth[scale * EDGE : scale * (far - EDGE)]
    )


def crop(photograph: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A window at a random place."""
    y, x = (
        int(rng.integers(0, side - wanted + 1))
        for side, wanted in zip(photograph.shape[:2], (height, width), strict=True)
    )
    return photograph[y : y + height, x : x + width]


def seen(window: np.ndarray, depth: int, rng: np.random.Generator) -> np.ndarray:
    """A surface from a distance: blurred by the lens, averaged by the sensor's pixels, noisy."""
    blurred = cv2.GaussianBlur(window, (0, 0), 0.4 * depth)
    size = window.shape[1] // depth, window.shape[0] // depth
    pixels = cv2.resize(blurred, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return (pixels + rng.normal(0, depth, pixels.shape)).clip(0, 255).round().astype(np.uint8)


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    """A picture after it was saved as a JPEG."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))


def save(path: Path, picture: np.ndarray) -> None:
    """Write a picture as PNG."""
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
