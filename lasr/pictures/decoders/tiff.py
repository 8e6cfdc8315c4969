"""TIFF through tifffile; old-style JPEG through libtiff (Pillow).

TIFF 6.0, its supplements (CIELab, ICC profiles), BigTIFF. Numbers beside tags are theirs.
"""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lasr.pictures.decoders.tiff_colour import (
    CIELAB,
    from_lab,
    from_ycbcr,
    is_subsampled,
    look_up,
    ratios,
    read_subsampled,
    tagged_profile,
)
from lasr.pictures.exif import exif_block, parse_exif
from lasr.pictures.samples import (
    CHANNELS,
    Check,
    Metadata,
    NotSupported,
    Samples,
    Space,
    count_notes,
    from_float,
    open_with,
    orientation_of,
    scaled,
    straight,
)

_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6
_ICCLAB = 9
_SPACES: dict[int, Space] = {
    _WHITE_IS_ZERO: "grey", 1: "grey", 2: "rgb", _PALETTE: "rgb", 5: "cmyk", _YCBCR: "rgb",
    CIELAB: "lab", _ICCLAB: "lab",
}  # fmt: skip
_OTHERS = {
    4: "a transparency mask", 10: "ITU L*a*b* colours", 32803: "camera raw (CFA)",
    34892: "camera raw", 32844: "LogL (HDR)", 32845: "LogLuv (HDR)", 51177: "a depth map",
}  # fmt: skip
_OLD_JPEG, _JPEG = 6, 7  # compression
_UNSPECIFIED, _ASSOCIATED, _UNASSOCIATED = 0, 1, 2  # extra samples
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4  # sample format
_MOST_EXTRAS = 16  # more are not a picture's, and would take memory

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is checked here


@dataclass(frozen=True)
class _Layout:
    """What the tags say of the samples."""

    photometric: int
    space: Space
    colours: int  # channels before extra samples
    extras: tuple[int, ...]
    bits: int
    format: int


def decode(content: bytes, check: Check) -> Samples:
    """Decode the first picture of a TIFF that is not a thumbnail or mask.

    Raises NotSupported, or many types for damaged files, and what `check` raises.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        number, page = _first(file)
        tags = page.tags
        check(page.imagewidth, page.imagelength)
        layout = _layout(page)
        notes = _count_notes(file)
        if page.compression == _OLD_JPEG:
            values, alpha = _through_libtiff(content, number, page), None
        elif layout.photometric == _YCBCR and page.compression != _JPEG and is_subsampled(tags):
            _check_segments(page, len(content))
            values, alpha = from_ycbcr(read_subsampled(page), tags), None
        else:
            _check_segments(page, len(content))
            stored = _channels_last(page.asarray(squeeze=False))
            values, alpha, more = _resolved(stored, layout, page)
            notes += more
        profile = _bytes(tags.valueof(34675))
        xmp = _bytes(tags.valueof(700))
        metadata = Metadata(exif_block(parse_exif(content)), xmp, _dpi(tags), profile)
        orientation = tags.valueof(274) or orientation_of(Image.Exif(), xmp)
        return Samples(
            values,
            layout.space,
            alpha,
            profile or (tagged_profile(tags, layout.bits) if layout.space == "rgb" else None),
            orientation if orientation in range(1, 9) else 1,
            metadata,
            notes,
        )


def _first(file: Any) -> tuple[int, Any]:
    """Number and directory of the first picture: neither a reduced version (bit 0) nor a mask."""
    for number in range(min(len(file.pages), 64)):
        page = file.pages[number]
        if not int(page.subfiletype) & 0b101:
            return number, page
    return 0, file.pages[0]


def _count_notes(file: Any) -> tuple[str, ...]:
    whole = 0
    try:
        for number in range(min(len(file.pages), 64)):
            whole += not int(file.pages[number].subfiletype) & 0b101
    except Exception:  # a later directory is damaged; the first is what counts
        whole += 1
    return count_notes(whole)


def _layout(page: Any) -> _Layout:
    """Raises NotSupported: something that no reader here understands."""
    tags = page.tags
    photometric = int(page.photometric)
    if photometric not in _SPACES:
        raise NotSupported(
            f"a TIFF with {_OTHERS.get(photometric, f'photometric interpretation {photometric}')}"
        )
    space = _SPACES[photometric]
    samples = int(page.samplesperpixel)
    colours = 1 if photometric == _PALETTE else CHANNELS[space]
    if samples < colours:
        raise NotSupported(f"a TIFF with {samples} samples per pixel for {space}")
    if samples > colours + _MOST_EXTRAS:
        raise NotSupported(f"a TIFF with {samples} samples per pixel")
    if page.imagedepth > 1:
        raise NotSupported("a TIFF of volumes")
    if space == "cmyk" and tags.valueof(332, 1) != 1:  # InkSet
        raise NotSupported("a TIFF of other inks than CMYK")
    bits = _same(tags.valueof(258, 1), "bits")
    kind = _same(tags.valueof(339, _UNSIGNED), "sample formats")
    if kind not in (_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED):
        raise NotSupported("a TIFF of complex numbers")
    if kind == _FLOAT and (space == "lab" or photometric == _PALETTE):
        raise NotSupported(f"a TIFF of floats in {space}")
    if photometric == _YCBCR and kind not in (_UNSIGNED, _UNDEFINED):
        raise NotSupported("a TIFF of YCbCr that is not in unsigned integers")
    extras = tags.valueof(338, ())
    extras = tuple(extras) if isinstance(extras, Sequence) else (extras,)
    beyond = samples - colours
    if not extras and beyond:  # not allowed; what programs mean by it is alpha
        extras = (_UNASSOCIATED,)
    extras = (*map(int, extras), *[_UNSPECIFIED] * beyond)[:beyond]
    return _Layout(photometric, space, colours, extras, bits, kind)


def _same(value: int | Sequence[int], what: str) -> int:
    numbers = set(map(int, value)) if isinstance(value, Sequence) else {int(value)}
    if len(numbers) != 1:
        raise NotSupported(f"a TIFF with different {what} per channel")
    return numbers.pop()


def _check_segments(page: Any, size: int) -> None:
    """Every strip or tile is there: tifffile fills the missing ones with zeros."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != len(counts) or not offsets:
        raise ValueError("its table of strips or tiles is damaged")
    planes = page.samplesperpixel if int(page.planarconfig or 1) == 2 else 1
    if page.is_tiled:
        down, across = (
            -(-page.imagelength // page.tilelength),
            -(-page.imagewidth // page.tilewidth),
        )
        expected = down * across * planes
    else:
        rows = min(page.rowsperstrip or page.imagelength, page.imagelength)
        expected = -(-page.imagelength // rows) * planes
    whole = len(offsets) == 1 and page.is_contiguous  # tifffile joins adjacent strips
    if len(offsets) < expected and not whole:
        raise ValueError("its table of strips or tiles is too short")
    for offset, count in zip(offsets, counts, strict=True):
        if offset <= 0 or count <= 0 or offset + count > size:
            raise ValueError("it ends before its pixels do, or a strip or tile is missing")
    if page.compression == _JPEG:
        _check_ends(page)


def _check_ends(page: Any) -> None:
    """Every JPEG among the strips or tiles has its end: the decoder fills what is cut with grey."""
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        if b"\xff\xd9" not in file.read(count):
            raise ValueError("a JPEG among its strips or tiles is cut")


def _channels_last(stored: np.ndarray) -> np.ndarray:
    """(planes, depth, h, w, samples) as tifffile returns it → h x w x c."""
    if stored.ndim != 5:
        stored = stored.reshape(1, 1, *stored.shape)
    planes, _, height, width, samples = stored.shape
    if planes == 1:
        return np.asarray(stored[0, 0])
    if samples != 1:
        raise NotSupported("a TIFF of planes with several samples each")
    return np.moveaxis(stored[:, 0, :, :, 0], 0, -1).reshape(height, width, planes)


def _resolved(
    stored: np.ndarray, layout: _Layout, page: Any
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Values in 8 or 16 bits, alpha or None, notes."""
    photometric, count = layout.photometric, layout.colours
    colours, extras = stored[..., :count], stored[..., count:]
    notes: tuple[str, ...] = ()
    if photometric == _PALETTE:
        values = look_up(colours[..., 0], layout.bits, page.tags.valueof(320))
        layout = _Layout(2, "rgb", 3, layout.extras, layout.bits, _UNSIGNED)
    elif layout.space == "lab":
        values = from_lab(colours, photometric, layout.bits)
    else:
        values, notes = _by_type(colours, layout)
        # JPEG decoders convert to RGB, unless each channel is a JPEG of its own.
        if photometric == _YCBCR and (page.compression != _JPEG or int(page.planarconfig) == 2):
            values = from_ycbcr(values, page.tags)
        if photometric == _WHITE_IS_ZERO:
            values = np.iinfo(values.dtype).max - values
    kinds = [kind for kind in layout.extras if kind in (_ASSOCIATED, _UNASSOCIATED)]
    if not kinds:
        return values, None, notes
    number = layout.extras.index(kinds[0])
    alpha, more = _by_type(extras[..., number : number + 1], layout)
    alpha = _match(alpha[..., 0], values.dtype)
    if kinds[0] == _ASSOCIATED:
        if layout.space == "lab" or photometric == _WHITE_IS_ZERO:
            raise NotSupported(f"a TIFF of premultiplied {layout.space} (white is zero, or CIELAB)")
        values = straight(values, alpha)
    return values, alpha, notes + more


def _by_type(values: np.ndarray, layout: _Layout) -> tuple[np.ndarray, tuple[str, ...]]:
    """Integers by their bits, floats from 0 to 1; uint8 or uint16."""
    if layout.format == _FLOAT:
        return from_float(values)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    bits = layout.bits
    notes: tuple[str, ...] = ()
    if layout.format == _SIGNED:  # 0 is black, the largest is white
        below = int((values < 0).sum())
        notes = (f"{below} of {values.size} negative values are clipped",) if below else ()
        values, bits = np.maximum(values, 0), bits - 1
    unsigned = values.astype(np.dtype(f"u{values.dtype.itemsize}"), copy=False)
    result = scaled(unsigned, 8 if bits == 8 else bits)
    if bits > 16 and result.max() < 2 and (largest := int(unsigned.max())) > 1:
        raise NotSupported(
            f"{layout.bits}-bit integers of at most {largest}, where {2**bits - 1} is white;"
            " as a picture they are black"
        )
    return result, notes


def _match(alpha: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if alpha.dtype == dtype:
        return alpha
    wide = alpha.astype(np.uint16)
    return wide * np.uint16(257) if dtype == np.uint16 else (wide // 257).astype(np.uint8)


def _through_libtiff(content: bytes, number: int, page: Any) -> np.ndarray:
    if page.samplesperpixel not in (1, 3) or page.bitspersample != 8:
        raise NotSupported(
            f"an old-style JPEG TIFF of {page.samplesperpixel} samples of {page.bitspersample} bits"
        )
    with open_with("TIFF", content) as image:
        image.seek(number)
        if image.mode == "YCbCr":
            image = image.convert("RGB")
        values = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    # Pillow may have turned it by the tag Orientation; `decode` does that.
    if values.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError("its pixels do not fit its header")
    return values if values.ndim == 3 else values[..., None].repeat(3, axis=2)


def _dpi(tags: Any) -> tuple[float, float] | None:
    """XResolution and YResolution in inches (ResolutionUnit 2) or centimetres (3)."""
    per_inch = {2: 1.0, 3: 2.54}.get(int(tags.valueof(296, 2)))
    x, y = ratios(tags.valueof(282)), ratios(tags.valueof(283))
    return (x[0] * per_inch, y[0] * per_inch) if per_inch and x and y and x[0] and y[0] else None


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if value else None
