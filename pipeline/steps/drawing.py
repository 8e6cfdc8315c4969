"""Draw distance maps in colour, and patches into a photograph."""

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pipeline.report.config import COLOURS

COLOUR_MAP = "magma"  # dark is near, and lightness grows with distance
_LINES = 500  # the line of a patch is this part of the photograph's longer side


def in_colour(distance: np.ndarray) -> np.ndarray:
    """A map of h x w in 0..1 as h x w x 3 uint8: dark is near, bright is far."""
    levels = np.clip(distance * 256, 0, 255).astype(np.uint8)
    shown: np.ndarray = cv2.applyColorMap(levels, cv2.COLORMAP_MAGMA)[..., ::-1]
    return np.ascontiguousarray(shown)


def outlined(pixels: np.ndarray, patches: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """A photograph (h x w x 3 uint8) with patches outlined: far ones in yellow, near ones in blue.

    patches: role, x, y and size of each, as rows of a manifest have them. The lines are between
    two black ones, which can be seen on any photograph, and lie inside the patch; small patches
    are drawn over large ones.
    """
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    thin = max(1, round(max(picture.size) / (2 * _LINES)))
    for patch in sorted(patches, key=lambda patch: -patch["size"]):
        x, y, last = patch["x"], patch["y"], patch["size"] - 1
        draw.rectangle((x, y, x + last, y + last), outline="black", width=4 * thin)
        corners = (x + thin, y + thin, x + last - thin, y + last - thin)
        draw.rectangle(corners, outline=COLOURS[patch["role"]], width=2 * thin)
    return np.asarray(picture)
