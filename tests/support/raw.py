"""A camera raw file: a DNG with a Bayer mosaic, written by tifffile."""

from pathlib import Path

import numpy as np
import tifffile

# XYZ to linear sRGB (IEC 61966-2-1): the camera's colours are those of sRGB.
_COLOURS = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)


def save_dng(path: Path, rgb: np.ndarray, orientation: int = 1) -> None:
    """Write linear RGB in 0..1, h x w x 3, as the sensor behind an RGGB filter would see it."""
    mosaic = rgb[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
    colours = [number for value in _COLOURS for number in (round(value * 10_000), 10_000)]
    tags = [
        (274, "H", 1, orientation, True),
        (33421, "H", 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, "B", 4, (0, 1, 1, 2), True),  # CFAPattern
        (50706, "B", 4, (1, 4, 0, 0), True),  # DNGVersion
        (50708, "s", 0, "made-up camera", True),  # UniqueCameraModel
        (50714, "H", 1, 0, True),  # BlackLevel
        (50717, "H", 1, 65_535, True),  # WhiteLevel
        (50721, "2i", 9, colours, True),  # ColorMatrix1
        (50728, "2I", 3, (1, 1, 1, 1, 1, 1), True),  # AsShotNeutral
        (50778, "H", 1, 21, True),  # CalibrationIlluminant1: D65
    ]
    sensor = (mosaic * 65_535).round().astype(np.uint16)
    tifffile.imwrite(path, sensor, photometric=32803, extratags=tags, metadata=None)
