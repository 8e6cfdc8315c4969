"""Measures of pixels for curation: exposure, contrast, sharpness, colour, a perceptual hash."""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from schemas.manifest import PATCH_SIZE

# Raise it when the same pixels get other measures than before, or for a new measure. 1: the
# measures at equal size.
VERSION = 1
SHADOW, HIGHLIGHT = 4, 251  # luma of 0..255; detail below and above is lost to clipping
FLAT = 0.02  # contrast of a plain area, whose hash would be that of its noise


def fingerprint_inputs() -> tuple[object, ...]:
    """What determines the measures of a patch, besides its pixels."""
    return "measure", VERSION


@dataclass(frozen=True)
class Measures:
    """The measures of a patch; a field is a column of the manifest. Luma is that of Rec. 601."""

    luma: float  # mean, 0 black .. 1 white
    contrast: float  # standard deviation of the luma (RMS contrast), 0 .. 0.5
    shadows: float  # share of pixels with a luma of at most 4 of 255, 0..1
    highlights: float  # share of pixels with a luma of at least 251 of 255, 0..1
    sharpness: float  # see `measure`
    phash: str | None  # see `perceptual_hash`
    sharpness_56: float  # `sharpness` of the patch shrunk to the size of a far one
    colour_a: float  # mean a* of CIELAB: below 0 green, above red
    colour_b: float  # mean b* of CIELAB: below 0 blue, above yellow


def measure(pixels: np.ndarray) -> Measures:
    """Measure a patch, H x W x 3 uint8.

    sharpness is the variance of the Laplacian (kernel 0 1 0, 1 -4 1, 0 1 0) of the luma in 0..255:
    0 for a plain area, below about 100 for a patch that looks blurred, thousands for foliage. Noise
    and JPEG blocks count as sharp (Pech-Pacheco et al. 2000). It depends on the size at which a
    scene is seen, so that `sharpness_56` compares far and near patches, both at 56 x 56 pixels. All
    measures but the hash are computed from integers, so they do not depend on the order of
    summation.
    """
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    share = np.bincount(luma.ravel(), minlength=256) / luma.size
    levels = np.arange(256) / 255
    mean = float(share @ levels)
    contrast = float(np.sqrt(share @ (levels - mean) ** 2))
    small = at_equal_size(pixels)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    return Measures(
        luma=mean,
        contrast=contrast,
        shadows=float(share[: SHADOW + 1].sum()),
        highlights=float(share[HIGHLIGHT:].sum()),
        sharpness=laplacian_variance(luma),
        phash=perceptual_hash(pixels),
        sharpness_56=laplacian_variance(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)),
        colour_a=float(lab[..., 1].sum(dtype=np.int64) / lab[..., 1].size - 128),
        colour_b=float(lab[..., 2].sum(dtype=np.int64) / lab[..., 2].size - 128),
    )


def at_equal_size(pixels: np.ndarray) -> np.ndarray:
    """A patch shrunk to the side of a far patch by averaging areas, or as it is if it has it."""
    side = PATCH_SIZE["lr"]
    if pixels.shape[:2] == (side, side):
        return pixels
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)


def laplacian_variance(luma: np.ndarray) -> float:
    """Variance of the Laplacian of a luma in 0..255, H x W uint8: see `measure`."""
    edges = cv2.Laplacian(luma, cv2.CV_16S).astype(np.int64)
    return float((edges**2).sum() / edges.size - (edges.sum() / edges.size) ** 2)


def perceptual_hash(pixels: np.ndarray) -> str | None:
    """The 64-bit DCT hash of a picture, H x W x 3 uint8, as 16 hex digits; None if it is flat.

    `imagehash.hex_to_hash` reads it. It changes little with size, compression, brightness or
    colour: pictures whose hashes differ in a few bits look the same.
    """
    import imagehash

    step = max(min(pixels.shape[:2]) // 56, 1)  # some of the pixels are enough to tell
    if cv2.cvtColor(pixels[::step, ::step], cv2.COLOR_RGB2GRAY).std() < 255 * FLAT:
        return None
    return str(imagehash.phash(Image.fromarray(pixels)))
