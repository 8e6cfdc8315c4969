"""Pictures as a browser shows them: 8 bit, without loss while they are small."""

import base64
from pathlib import Path

import cv2
import numpy as np

from lasr.pictures.png import encode_png

SIDE = 4096  # pixels of the longer side; browsers show larger ones slowly or not at all
_LOSSLESS = 2_500_000  # pixels
_QUALITY = 95  # of JPEG
BACKDROP = 128  # grey behind transparent pixels


def fitting(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """H x W x 3 uint8, shrunk by averaging areas until no side is longer than `side`."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def write_preview(pixels: np.ndarray, folder: Path, name: str) -> Path:
    """Write H x W x 3 uint8 as NAME.png, or NAME.jpg where that would be large."""
    pixels = fitting(pixels)
    if pixels.shape[0] * pixels.shape[1] <= _LOSSLESS:
        path, content = folder / f"{name}.png", encode_png(pixels)
    else:
        path, content = folder / f"{name}.jpg", jpeg(pixels, _QUALITY)
    path.write_bytes(content)
    return path


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """H x W x 3 uint8 as JPEG."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def as_uri(pixels: np.ndarray) -> str:
    """A patch as a `data:` URI: small ones without loss."""
    small = max(pixels.shape[:2]) <= 64
    kind, content = ("png", encode_png(pixels)) if small else ("jpeg", jpeg(pixels, 90))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def in_magma(distance: np.ndarray) -> np.ndarray:
    """A distance map, H x W float32 in 0..1, in colours: dark is near, light is far."""
    levels = np.clip(fitting(distance, SIDE // 2) * 256, 0, 255).astype(np.uint8)
    colours: np.ndarray = cv2.applyColorMap(levels, cv2.COLORMAP_MAGMA)
    return cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
