"""A test picture and an ICC profile."""

import numpy as np
from PIL import ImageCms

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def smooth(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """23 x 37, another ramp in each channel, so that nothing can be swapped unnoticed."""
    y, x = np.mgrid[0:23, 0:37] / 40
    planes = [x, y, 1 - x, (x + y) / 2]
    return (np.stack(planes[:channels], axis=2) * np.iinfo(dtype).max).astype(dtype)
