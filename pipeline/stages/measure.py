"""What is measured of pixels for curation: exposure, contrast, sharpness and a perceptual hash."""

from dataclasses import dataclass

import cv2
import imagehash
import numpy as np
from PIL import Image

SHADOW, HIGHLIGHT = 4, 251  # luma of 0..255, within which detail is lost to clipping
FLAT = 0.02  # contrast of a plain area: its hash would be that of its noise


@dataclass(frozen=True)
class Measures:
    """Of a patch, by the names of the manifest's columns. Luma is that of Rec. 601."""

    luma: float  # mean, 0 black .. 1 white
    contrast: float  # standard deviation of the luma (RMS contrast), 0 .. 0.5
    shadows: float  # share of pixels with a luma of at most 4 of 255, 0..1
    highlights: float  # share of pixels with a luma of at least 251 of 255, 0..1
    sharpness: float  # see `measure`
    phash: str | None  # see `perceptual_hash`


def measure(pixels: np.ndarray) -> Measures:
    """Measure a patch, H x W x 3 uint8.

    sharpness is the variance of the Laplacian (kernel 0 1 0, 1 -4 1, 0 1 0) of the luma in 0..255,
    in its square: 0 for a plain area, below some 100 for what looks blurred at its size, thousands
    for foliage. Noise and JPEG blocks count as sharp (Pech-Pacheco et al. 2000). All but the hash
    come from whole numbers, so they do not depend on the order of summation.
    """
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    share = np.bincount(luma.ravel(), minlength=256) / luma.size
    levels = np.arange(256) / 255
    mean = float(share @ levels)
    contrast = float(np.sqrt(share @ (levels - mean) ** 2))
    edges = cv2.Laplacian(luma, cv2.CV_16S).astype(np.int64)
    return Measures(
        luma=mean,
        contrast=contrast,
        shadows=float(share[: SHADOW + 1].sum()),
        highlights=float(share[HIGHLIGHT:].sum()),
        sharpness=float((edges**2).sum() / edges.size - (edges.sum() / edges.size) ** 2),
        phash=perceptual_hash(pixels),
    )


def perceptual_hash(pixels: np.ndarray) -> str | None:
    """The 64-bit DCT hash of a picture, H x W x 3 uint8, as 16 hex digits; None where it is flat.

    `imagehash.hex_to_hash` reads it. It stays nearly the same under another size, compression,
    brightness or colour: two hashes that differ in a few bits are of pictures that look the same.
    """
    step = max(min(pixels.shape[:2]) // 56, 1)  # a look at some pixels tells whether all are alike
    if cv2.cvtColor(pixels[::step, ::step], cv2.COLOR_RGB2GRAY).std() < 255 * FLAT:
        return None
    return str(imagehash.phash(Image.fromarray(pixels)))
