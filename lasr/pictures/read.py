"""Read a picture file of any format: upright pixels in their own depth, alpha, ICC profile."""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from lasr.errors import UserError, one_line
from lasr.pictures.find import check_regular

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

_SAVE_AGAIN = "save it with 8 or 16 bits per channel"
_UPRIGHT = {  # EXIF orientation → turns the stored rows upright
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@dataclass(frozen=True)
class Picture:
    """An upright picture.

    pixels: h x w x c, uint8 or uint16; c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha (not
    premultiplied). profile: the ICC profile of the numbers; None means sRGB.
    """

    pixels: np.ndarray
    profile: bytes | None = None

    @property
    def channels(self) -> int:
        return int(self.pixels.shape[2])

    @property
    def has_alpha(self) -> bool:
        return self.channels in (2, 4)


def read_picture(path: Path) -> Picture:
    """Read a picture upright, with its own depth and channels.

    RGB and grey keep their numbers and their ICC profile, so a wide gamut stays wide. CMYK becomes
    sRGB through its profile; palettes become RGB; float TIFFs in [0, 1] become 16 bit; of several
    frames the first is read. Raises UserError: not readable, or not a regular file.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of large sizes
            with Image.open(path) as image:
                return _read(path, image)
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(
            f"{path}: not a readable picture ({one_line(error)})",
            "replace the file, or leave it out",
        ) from error


def read_rgb(path: Path) -> Tensor:
    """Read a picture for networks and metrics: (3, h, w) float32 in [0, 1], without alpha.

    Raises UserError: not readable.
    """
    import torch  # here, so that commands answer a wrong path without loading it

    pixels = read_picture(path).pixels
    colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, axis=2)
    tensor = torch.from_numpy(colours.astype(np.float32)).div_(np.iinfo(pixels.dtype).max)
    return tensor.permute(2, 0, 1).contiguous()


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert a CMYK or RGB image to sRGB through its ICC profile; None if the profile is broken.

    An RGB image whose profile is sRGB is returned unchanged.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _read(path: Path, image: Image.Image) -> Picture:
    if (frames := getattr(image, "n_frames", 1)) > 1:
        log.warning("%s: only the first of its %d frames is read", path, frames)
    profile = image.info.get("icc_profile")
    tile = str(getattr(image, "tile", ""))  # names the layout in the file, as in 'RGB;16B'
    if image.mode in ("RGB", "RGBA", "LA") and ";16" in tile:
        pixels = _read_deep(path, image, "LA;16" in tile)  # Pillow drops the lower 8 bits
    else:
        image = ImageOps.exif_transpose(image)
        if image.mode == "CMYK":
            image, profile = _srgb_from_cmyk(path, image, profile), None
        pixels = _pixels(path, image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    space = b"GRAY" if pixels.shape[2] < 3 else b"RGB "
    if profile and profile[16:20] != space:  # the colour space in the ICC header
        profile = None
    return Picture(np.ascontiguousarray(pixels), profile)


def _read_deep(path: Path, image: Image.Image, grey: bool) -> np.ndarray:
    """Read 16-bit RGB, RGBA, or grey and alpha through OpenCV."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise ValueError(f"16-bit {image.format} of an unknown kind")
    if grey:
        return _upright(decoded[:, :, [0, -1]], orientation)
    order = [2, 1, 0, 3][: decoded.shape[2]]  # OpenCV's BGR
    # OpenCV turns TIFF upright by itself.
    return _upright(decoded[:, :, order], 1 if image.format == "TIFF" else orientation)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else turn(pixels)


def _pixels(path: Path, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise UserError(f"{path}: integers beyond 16 bit", _SAVE_AGAIN)
        return values.astype(np.uint16)
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN fails, too
            raise UserError(f"{path}: floats outside 0 to 1", _SAVE_AGAIN)
        return (values * 65_535).round().astype(np.uint16)
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    mode = ("LA" if grey else "RGBA") if alpha else ("L" if grey else "RGB")
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _srgb_from_cmyk(path: Path, image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        if (converted := to_srgb(image, profile)) is not None:
            return converted
        log.warning("%s: its colour profile is broken and is ignored", path)
    return image.convert("RGB")
