"""Write pictures: PNG, JPEG, WebP or TIFF, atomically, with inherited metadata; their paths."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from lasr.errors import UserError
from lasr.ownership import own_path
from lasr.pictures import exif
from lasr.pictures.png import write_png
from lasr.pictures.profiles import grey_profile, srgb_profile
from lasr.pictures.read import Picture
from lasr.pictures.samples import Metadata

Format = Literal["png", "jpg", "webp", "tiff"]
Source = TypeVar("Source")
MAX_SIDE = {"jpg": 65_535, "webp": 16_383}  # pixels that the formats can hold
_QUALITY = 95  # of JPEG and WebP
_SEGMENT = 65_000  # bytes of EXIF or XMP that a JPEG holds


def result_paths(
    found: Mapping[Source, Path], out: Path, format: str, suffix: str = ""
) -> dict[Source, Path]:
    """Map each picture to the path of its result: its name below `out`, in another format.

    found: pictures and their names, as `find_pictures` returns them. suffix: of the names, before
    that of the format. The results of `a.jpg` and `a.png` in one folder are `a.jpg.png` and
    `a.png.png`. Raises UserError: two pictures would still get the same path.
    """
    count = Counter(name.with_suffix("") for name in found.values())
    source_of: dict[Path, Source] = {}
    for source, name in found.items():
        stem = name.with_suffix("") if count[name.with_suffix("")] == 1 else name
        target = out / stem.with_name(f"{stem.name}{suffix}.{format}")
        if (other := source_of.get(target)) is not None:
            raise UserError(
                f"{other} and {source} would both become {target}",
                "give the folder that holds both, or use a separate --out for each",
            )
        source_of[target] = source
    return {source: target for target, source in source_of.items()}


def check_format(picture: Picture, size: tuple[int, int], format: Format) -> None:
    """Raise UserError if the picture, with sides of `size`, cannot be saved in this format."""
    side = max(size)
    if side > MAX_SIDE.get(format, side):
        raise UserError(f"{side} pixels are more than {format} can hold", "use --format png")
    if picture.alpha is not None and format == "jpg":
        raise UserError(
            "the picture has transparency, which JPEG cannot hold", "use --format png or webp"
        )


def save_picture(
    path: Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    dtype: np.dtype,
    software: str,
    metadata: Metadata | None = None,
) -> None:
    """Write an sRGB picture from strips of rows, h' x w x c each, uint8 or uint16.

    Atomic; replaces nothing but a file of ours.

    The suffix of `path` is the format. PNG is written strip by strip. TIFF (deflate), JPEG (without
    chroma subsampling) and WebP collect the strips in memory first. PNG and TIFF keep 16 bits; JPEG
    and WebP always have 8.

    Args:
        shape: h x w x c of the whole picture; c as in `Picture.planes`.
        software: text of the tag Software, which `software_tag` reads.
        metadata: of the original. EXIF and XMP are copied with the orientation of an upright
            picture and the new size, the resolution as it is. If the original has a profile, the
            result has that of sRGB, or of grey with sRGB's curve.
    """
    metadata = metadata or Metadata()
    format = path.suffix[1:]
    grey = shape[2] < 3
    size = shape[1], shape[0]
    xmp = _enlarged_xmp(metadata.xmp, size)
    with own_path(path) as temporary:
        if format == "tiff":
            pixels = _collect(strips, shape, dtype)
            _write_tiff(temporary, pixels, software, metadata, xmp)
            exif.append_exif(temporary, metadata.exif, size)
            return
        limit = _SEGMENT if format == "jpg" else None
        block = b"Exif\0\0" + exif.enlarged_exif(metadata.exif, software, size, limit)
        # WebP has no grey: Pillow writes RGB.
        as_grey = grey and format != "webp"
        profile = (grey_profile() if as_grey else srgb_profile()) if metadata.profile else None
        if format == "png":
            bits = dtype.itemsize * 8
            write_png(temporary, strips, shape, bits, profile, block, xmp, metadata.dpi)
            return
        pixels = _collect(strips, shape, np.dtype(np.uint8))
        image = Image.fromarray(pixels if shape[2] > 1 else pixels[:, :, 0])
        options: dict[str, Any] = {"quality": _QUALITY, "icc_profile": profile, "exif": block}
        if format == "jpg":
            if xmp and len(xmp) <= _SEGMENT:
                options["xmp"] = xmp
            if metadata.dpi and max(metadata.dpi) < 65_535:
                options["dpi"] = metadata.dpi
            image.save(temporary, "JPEG", subsampling=0, **options)
        else:
            image.save(temporary, "WEBP", xmp=xmp or b"", **options)


def software_tag(path: Path) -> str | None:
    """The tag Software of a picture file; None if there is none or the file is not a picture."""
    if not path.is_file():  # opening a named pipe would block
        return None
    try:
        with open(path, "rb") as file:
            return exif.software_tag(file)
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


def _write_tiff(
    path: Path, pixels: np.ndarray, software: str, metadata: Metadata, xmp: bytes | None
) -> None:
    import tifffile

    channels = pixels.shape[2]
    if channels == 2:  # few programs read grey with alpha in a TIFF
        pixels = pixels[:, :, [0, 0, 0, 1]]
    profile = grey_profile() if channels == 1 else srgb_profile()
    extra: list[tuple[int, Any, int, Any, bool]] = [(700, 1, len(xmp), xmp, True)] if xmp else []
    tifffile.imwrite(
        path,
        pixels if channels > 1 else pixels[:, :, 0],
        photometric="rgb" if channels > 1 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        planarconfig="contig" if channels > 1 else None,
        compression="zlib",
        iccprofile=profile if metadata.profile else None,
        resolution=metadata.dpi,
        resolutionunit="inch" if metadata.dpi else None,
        software=software,
        extratags=extra,
        metadata=None,
        byteorder="<" if exif.byte_order(metadata.exif) == "<" else ">",
    )


def _enlarged_xmp(xmp: bytes | None, size: tuple[int, int]) -> bytes | None:
    """XMP with the orientation and size of the result, wherever it states them."""
    if not xmp:
        return None
    width, height = (str(side).encode() for side in size)
    for name, value in (
        (b"tiff:Orientation", b"1"),
        (b"tiff:ImageWidth", width),
        (b"tiff:ImageLength", height),
        (b"exif:PixelXDimension", width),
        (b"exif:PixelYDimension", height),
    ):
        xmp = re.sub(rb"(" + name + rb"\s*=\s*[\"'])\d+", rb"\g<1>" + value, xmp)
        xmp = re.sub(rb"(<" + name + rb">)\s*\d+", rb"\g<1>" + value, xmp)
    return xmp
