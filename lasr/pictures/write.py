"""Write upscaled pictures: PNG, JPEG, WebP or TIFF, atomically, with a Software tag."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from lasr.errors import UserError
from lasr.ownership import own_path
from lasr.pictures.png import write_png
from lasr.pictures.read import Picture

Format = Literal["png", "jpg", "webp", "tiff"]
MAX_SIDE = {"jpg": 65_535, "webp": 16_383}  # pixels that the formats can hold
_QUALITY = 95  # of JPEG and WebP


def check_format(picture: Picture, scale: int, format: Format) -> None:
    """Raise UserError if the picture, enlarged by `scale`, cannot be saved in this format."""
    side = scale * max(picture.pixels.shape[:2])
    if side > MAX_SIDE.get(format, side):
        raise UserError(f"{side} pixels are more than {format} can hold", "use --format png")
    if picture.has_alpha and format == "jpg":
        raise UserError(
            "the picture has transparency, which JPEG cannot hold", "use --format png or webp"
        )


def save_picture(
    path: Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    profile: bytes | None,
    software: str,
) -> None:
    """Write a picture from strips of rows, h' x w x c each, in uint8 or uint16.

    Atomic; replaces nothing but a file of ours.

    The suffix of `path` is the format. PNG is written strip by strip. TIFF (deflate), JPEG (without
    chroma subsampling) and WebP collect the strips in memory first. PNG and TIFF keep 16 bits; JPEG
    and WebP always have 8.

    Args:
        shape: h x w x c of the whole picture; c as in `Picture`.
        profile: ICC profile.
        software: text of the tag Software, which `software_tag` reads.
    """
    format = path.suffix[1:]
    with own_path(path) as temporary:
        if format == "png":
            write_png(temporary, strips, shape, dtype.itemsize * 8, profile, _exif(software))
        elif format == "tiff":
            _write_tiff(temporary, _collect(strips, shape, dtype), profile, software)
        else:
            pixels = _collect(strips, shape, np.dtype(np.uint8))
            image = Image.fromarray(pixels if shape[2] > 1 else pixels[:, :, 0])
            options = {"quality": _QUALITY, "icc_profile": profile, "exif": _exif(software)}
            if format == "jpg":
                image.save(temporary, "JPEG", subsampling=0, **options)
            else:
                image.save(temporary, "WEBP", **options)


def software_tag(path: Path) -> str | None:
    """The tag Software of a picture file; None if there is none or the file is not a picture."""
    if not path.is_file():  # opening a named pipe would block
        return None
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Software)
    except Exception:  # decoders raise nearly anything on files that are not pictures
        return None


def _collect(
    strips: Iterable[np.ndarray], shape: tuple[int, int, int], dtype: np.dtype
) -> np.ndarray:
    """The strips in one array of `dtype`; 16 bits are rounded to 8 where it is uint8."""
    pixels = np.empty(shape, dtype)
    top = 0
    for strip in strips:
        rows = strip if strip.dtype == dtype else ((strip + 128.0) / 257).astype(np.uint8)
        pixels[top : top + len(rows)] = rows
        top += len(rows)
    return pixels


def _write_tiff(path: Path, pixels: np.ndarray, profile: bytes | None, software: str) -> None:
    import tifffile  # of the trainer's extra

    channels = pixels.shape[2]
    if channels == 2:  # few programs read grey with alpha in a TIFF
        pixels, profile = pixels[:, :, [0, 0, 0, 1]], None
    tifffile.imwrite(
        path,
        pixels if channels > 1 else pixels[:, :, 0],
        photometric="rgb" if channels > 1 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        planarconfig="contig" if channels > 1 else None,
        compression="zlib",
        iccprofile=profile,
        software=software,
        metadata=None,
    )


def _exif(software: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = software
    return exif.tobytes()
