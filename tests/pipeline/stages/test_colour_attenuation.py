"""The formula of Zhu et al.: its direction and its numbers."""

from pathlib import Path

import cv2
import numpy as np

from pipeline.stages.colour_attenuation import attenuation


def test_colour_attenuation_sees_haze_as_far(photographs: Path) -> None:
    """The haze model itself, I = J t + A (1 - t), over a photograph, t falling to the right."""
    scene = cv2.imread(str(photographs / "coffee.png"))[..., ::-1] / 255
    t = np.linspace(1, 0.1, scene.shape[1])[None, :, None]
    hazy = (255 * (scene * t + 0.95 * (1 - t))).astype(np.uint8)
    columns = attenuation(hazy).mean(0)
    assert np.corrcoef(columns, np.arange(len(columns)))[0, 1] > 0.8
    assert columns[-50:].mean() > columns[:50].mean() + 0.3


def test_colour_attenuation_is_the_published_formula() -> None:
    flat = np.empty((40, 40, 3), np.uint8)
    flat[:, :20], flat[:, 20:] = (200, 100, 50), (100, 100, 150)
    left, right = (
        0.121779 + 0.959710 * v - 0.780245 * s for v, s in ((200 / 255, 0.75), (150 / 255, 1 / 3))
    )
    distance = attenuation(flat)
    assert distance[20, 2] == float(left > right) and distance[20, 37] == float(right > left)
