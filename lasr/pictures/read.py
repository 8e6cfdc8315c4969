"""Pictures in and out of the trainer's commands: any format, 8 or 16 bit, grey, alpha, profile."""

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import tifffile
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps
from torch import Tensor

from lasr.errors import UserError
from lasr.files import atomic_path
from lasr.pictures.png import write_png

log = logging.getLogger(__name__)

Format = Literal["png", "jpg", "webp", "tiff"]
LARGEST_SIDE = {"jpg": 65_535, "webp": 16_383}  # what the formats can hold
_UPRIGHT = {  # EXIF orientation → how the stored rows are turned upright
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
    premultiplied). profile: the ICC profile that says what the numbers mean, None for sRGB.
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
    """Read any picture, upright, with the depth and the channels that it has.

    RGB and grey keep their ICC profile, and their numbers stay as they are, so that a wide gamut
    stays wide. CMYK becomes sRGB through its profile; palettes are resolved; float TIFFs in [0, 1]
    become 16 bit; of several frames the first is taken. Raises UserError: not readable.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and large sizes are no news here
            with Image.open(path) as image:
                return _read(path, image)
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(f"{path}: not a readable picture ({error})") from error


def read_rgb(path: Path) -> Tensor:
    """A picture as networks and metrics take it: (3, h, w) float32 in [0, 1], alpha left out.

    Raises UserError: not readable.
    """
    pixels = read_picture(path).pixels
    colours = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1].repeat(3, axis=2)
    tensor = torch.from_numpy(colours.astype(np.float32)).div_(np.iinfo(pixels.dtype).max)
    return tensor.permute(2, 0, 1).contiguous()


def _read(path: Path, image: Image.Image) -> Picture:
    if (frames := getattr(image, "n_frames", 1)) > 1:
        log.warning("%s: the first of its %d frames is taken", path, frames)
    profile = image.info.get("icc_profile")
    tile = str(getattr(image, "tile", ""))  # names the layout in the file, as in 'RGB;16B'
    if image.mode in ("RGB", "RGBA", "LA") and ";16" in tile:
        pixels = _read_deep(path, image, "LA;16" in tile)  # Pillow would drop the lower 8 bits
    else:
        image = ImageOps.exif_transpose(image)
        if image.mode == "CMYK":
            image, profile = _srgb_from_cmyk(path, image, profile), None
        pixels = _pixels(path, image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    space = b"GRAY" if pixels.shape[2] < 3 else b"RGB "
    if profile and profile[16:20] != space:  # the ICC header's colour space: a wrong one is dropped
        profile = None
    return Picture(np.ascontiguousarray(pixels), profile)


def _read_deep(path: Path, image: Image.Image, grey: bool) -> np.ndarray:
    """16-bit RGB, RGBA, or grey and alpha, through OpenCV."""
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
            raise UserError(f"{path}: integers beyond 16 bit; save it with 8 or 16 bit a channel")
        return values.astype(np.uint16)
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # also where one is not a number
            raise UserError(f"{path}: floats outside 0 to 1; save it with 8 or 16 bit a channel")
        return (values * 65_535).round().astype(np.uint16)
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = image.has_transparency_data
    mode = ("LA" if grey else "RGBA") if alpha else ("L" if grey else "RGB")
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _srgb_from_cmyk(path: Path, image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            log.warning("%s: its colour profile is broken and was left out", path)
    return image.convert("RGB")


def check_format(picture: Picture, scale: int, kind: Format) -> None:
    """Raises UserError where the enlarged picture cannot be saved in this format."""
    side = scale * max(picture.pixels.shape[:2])
    if side > LARGEST_SIDE.get(kind, side):
        raise UserError(f"{side} pixels are more than {kind} can hold; take --format png")
    if picture.has_alpha and kind == "jpg":
        raise UserError("it has transparency, which JPEG cannot hold; take --format png or webp")


def save_picture(
    path: Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    profile: bytes | None,
    made_by: str,
) -> None:
    """Write a picture atomically from its strips of rows, h' x w x c each, uint8 or uint16.

    PNG is written as the strips come. JPEG (quality 95, no chroma subsampling), WebP (95) and TIFF
    (deflate) are gathered first, in their own 8 or 16 bits; JPEG and WebP are 8 bit always.
    made_by: goes into the tag `Software`, where `made_by` finds it.
    """
    kind = path.suffix[1:]
    with atomic_path(path) as temporary:
        if kind == "png":
            exif = _exif(made_by)
            write_png(temporary, strips, shape, dtype.itemsize * 8, profile, exif)
            return
        pixels = np.empty(shape, dtype if kind == "tiff" else np.uint8)
        for top, strip in _with_tops(strips):
            rows = (
                strip if strip.dtype == pixels.dtype else ((strip + 128.0) / 257).astype(np.uint8)
            )
            pixels[top : top + len(rows)] = rows
        if kind == "tiff":
            if shape[2] == 2:  # grey and alpha: few programs read that in a TIFF
                pixels, profile = pixels[:, :, [0, 0, 0, 1]], None
            tifffile.imwrite(
                temporary,
                pixels if shape[2] > 1 else pixels[:, :, 0],
                photometric="rgb" if shape[2] > 1 else "minisblack",
                extrasamples=["unassalpha"] if shape[2] in (2, 4) else None,
                planarconfig="contig" if shape[2] > 1 else None,
                compression="zlib",
                iccprofile=profile,
                software=made_by,
                metadata=None,
            )
            return
        image = Image.fromarray(pixels if shape[2] > 1 else pixels[:, :, 0])
        options = {"subsampling": 0, "format": "JPEG"} if kind == "jpg" else {"format": "WEBP"}
        image.save(temporary, quality=95, icc_profile=profile, exif=_exif(made_by), **options)


def made_by(path: Path) -> str | None:
    """What `save_picture` was told about the file at `path`; None where it says nothing."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Software)
    except Exception:  # not a picture: certainly none of ours
        return None


def _exif(made_by: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = made_by
    return exif.tobytes()


def _with_tops(strips: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    top = 0
    for strip in strips:
        yield top, strip
        top += len(strip)
