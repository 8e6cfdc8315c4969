"""Distance from haze: a formula without weights, for a first look without downloads."""

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lasr.device import Precision
from lasr.weights.locate import Located
from pipeline.stages.depth import DepthModel, normalise

if TYPE_CHECKING:
    import torch

IS_NETWORK = False
DRAWS_NOISE = False

_VALUE = np.arange(256, dtype=np.float32)
_GREY_TERM = (0.121779 + 0.959710 * _VALUE / 255 - 0.780245 * (_VALUE > 0)).astype(np.float32)
_PER_MINIMUM = (0.780245 / np.maximum(_VALUE, 1)).astype(np.float32)


def recognises(path: Path) -> bool:
    """Never: a formula has no files."""
    return False


def load(located: Located, device: "torch.device", seed: int, precision: Precision) -> DepthModel:
    """The formula as an estimator of one photograph per call."""
    # All work is in `prepare`, which runs in threads.
    return DepthModel(located.identity, attenuation, list, 1, IS_NETWORK)


def attenuation(photograph: np.ndarray) -> np.ndarray:
    """Haze grows with distance, so bright and pale pixels are far.

    Zhu, Mai, Shao, "A Fast Single Image Haze Removal Algorithm Using Color Attenuation Prior",
    IEEE TIP 2015: d = 0.121779 + 0.959710 V - 0.780245 S (eq. 8 with the learned coefficients),
    then the minimum over 15x15 (eq. 21), so that a white object nearby is not taken for haze.
    H x W x 3 uint8 -> H x W float32 in 0..1.
    """
    # V = max / 255 and S = 1 - min / max from bytes take a third of the time of a float HSV.
    red, green, blue = cv2.split(photograph)
    value = cv2.max(cv2.max(red, green), blue)
    least = cv2.min(cv2.min(red, green), blue)
    distance = cv2.multiply(cv2.LUT(value, _PER_MINIMUM), least, dtype=cv2.CV_32F)
    distance = cv2.add(distance, cv2.LUT(value, _GREY_TERM))
    distance = cv2.erode(distance, np.ones((15, 15), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return normalise(distance)
