"""What texture and contrast noise and JPEG give to patches without content.

    python -m benchmarks.blank

Even and evenly graded areas of random colour and direction, with the noise of a sensor, as JPEG of
several qualities: the largest texture and contrast of patches cut out of them, far and near. The
limits of `lasr query --ask no-content` are above these.
"""

import io
import itertools

import numpy as np
from PIL import Image

from pipeline.stages.measure import measure
from pipeline.stages.select import texture_map
from schemas.manifest import PATCH_SIZE

SLOPES = (0.0, 0.05, 0.1, 0.2)  # levels of 255 per pixel; 0.2: black to white in 1,280 pixels
NOISES = (0.0, 1.0, 2.0)  # standard deviation of each channel, levels
QUALITIES = (50, 70, 85, 95, None)  # None: without JPEG
PATCHES = 12  # of each kind


def blank_area(side: int, slope: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """An area without content, side x side x 3 uint8."""
    y, x = np.mgrid[:side, :side] - side / 2
    angle = rng.uniform(0, 2 * np.pi)
    grey = rng.uniform(50, 205) + slope * (x * np.cos(angle) + y * np.sin(angle))
    area = grey[..., None] + rng.uniform(-20, 20, 3) + rng.normal(0, noise, (side, side, 3))
    rounded: np.ndarray = np.clip(np.rint(area), 0, 255).astype(np.uint8)
    return rounded


def as_jpeg(pixels: np.ndarray, quality: int | None) -> np.ndarray:
    """The pixels after JPEG of a quality."""
    if quality is None:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def measured(
    size: int, slope: float, noise: float, quality: int | None, patches: int = PATCHES
) -> tuple[float, float]:
    """The largest texture and the largest contrast of such patches."""
    rng = np.random.default_rng(0)
    textures, contrasts = [], []
    for _ in range(patches):
        area = as_jpeg(blank_area(size + 64, slope, noise, rng), quality)
        x, y = rng.integers(0, 64, 2)  # anywhere on the grid of blocks
        textures.append(float(texture_map(area)[y : y + size, x : x + size].mean()))
        contrasts.append(measure(area[y : y + size, x : x + size]).contrast)
    return max(textures), max(contrasts)


def main() -> None:
    """Print a table of each role."""
    for role, size in PATCH_SIZE.items():
        print(f"\n{role}: largest texture / largest contrast of {PATCHES} patches of {size} pixels")
        print(
            "noise slope "
            + " ".join(f"{f'quality {q}' if q else 'no JPEG':>15}" for q in QUALITIES)
        )
        for noise, slope in itertools.product(NOISES, SLOPES):
            cells = ["{:.4f} / {:.4f}".format(*measured(size, slope, noise, q)) for q in QUALITIES]
            print(f"{noise:5.0f} {slope:5.2f} " + " ".join(cells))


if __name__ == "__main__":
    main()
