"""The colours of TIFF: palettes, CIELAB, YCbCr, and tags that define RGB (TIFF 6.0, 20 to 23)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lasr.pictures.profiles import SRGB_CURVE, SRGB_POINTS, rgb_profile, table_profile
from lasr.pictures.samples import NotSupported

CIELAB = 8  # photometric interpretation; ICCLAB is 9
_NEAR = 0.005  # of a chromaticity


def look_up(index: np.ndarray, bits: int, table: Any) -> np.ndarray:
    colours = np.asarray(table)
    if table is None or colours.size != 3 * 2**bits:
        raise ValueError("its palette is missing or damaged")
    colours = colours.reshape(3, -1).T
    # Entries have 16 bits; some writers stored 8 (libtiff looks for that, too).
    colours = colours if colours.max() < 256 else colours >> 8
    result: np.ndarray = colours.astype(np.uint8)[index.astype(np.intp)]
    return result


def from_lab(values: np.ndarray, photometric: int, bits: int) -> np.ndarray:
    """To the encoding of `Samples`. In CIELAB a*, b* are signed, in ICCLAB offset by half.

    At 16 bits a*, b* count in 1/256; L* of ICCLAB ends at 0xFF00.
    """
    if bits not in (8, 16):
        raise NotSupported(f"a CIELAB TIFF with {bits} bits")
    unsigned = values.astype(np.dtype(f"u{bits // 8}"))
    if photometric == CIELAB:
        unsigned = unsigned.copy()
        unsigned[..., 1:] += unsigned.dtype.type(2 ** (bits - 1))
    if bits == 8:
        return unsigned
    result = unsigned.astype(np.uint32)
    # 0x8000 stands for 0 and 256 for 1; ICC v4 wants 0x8080 and 257.
    result[..., 1:] = (result[..., 1:] * 257 + 128) // 256
    if photometric != CIELAB:
        result[..., 0] = (result[..., 0] * 257 + 128) // 256
    return np.minimum(result, 65_535).astype(np.uint16)


def is_subsampled(tags: Any) -> bool:
    return tuple(tags.valueof(530, (2, 2))) != (1, 1)


def read_subsampled(page: Any) -> np.ndarray:
    """H x w x 3 uint8 YCbCr of strips or tiles in which chroma has a lower resolution (section 21).

    A data unit holds the luma of a block of pixels, then its Cb and its Cr.
    """
    import tifffile

    across, down = (int(number) for number in page.tags.valueof(530, (2, 2)))
    if page.samplesperpixel != 3 or page.bitspersample != 8 or int(page.planarconfig) != 1:
        raise NotSupported("a TIFF of subsampled YCbCr that is not 3 x 8 bit in one plane")
    if page.predictor != 1 or min(across, down) < 1:
        raise NotSupported("a TIFF of subsampled YCbCr with a predictor")
    decompress = tifffile.TIFF.DECOMPRESSORS[page.compression]
    height, width = page.imagelength, page.imagewidth
    tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    per_row = -(-width // tile[1])
    result = np.empty((height, width, 3), np.uint8)
    for number, (offset, count) in enumerate(
        zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        top, left = number // per_row * tile[0], number % per_row * tile[1]
        if top >= height:
            break
        rows = tile[0] if page.is_tiled else min(tile[0], height - top)
        shape = -(-rows // down), -(-tile[1] // across), across * down + 2
        page.parent.filehandle.seek(offset)
        packed = page.parent.filehandle.read(count)
        data = bytes(packed if decompress is None else decompress(packed))
        if len(data) < int(np.prod(shape)):
            raise ValueError("its pixels end early")
        units = np.frombuffer(data, np.uint8, int(np.prod(shape))).reshape(shape)
        blocks = units[..., :-2].reshape(*shape[:2], down, across)
        luma = blocks.swapaxes(1, 2).reshape(shape[0] * down, shape[1] * across)
        chroma = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
        block = np.concatenate([luma[..., None], chroma], axis=2)
        part = result[top : top + tile[0], left : left + tile[1]]
        part[...] = block[: part.shape[0], : part.shape[1]]
    return result


def from_ycbcr(values: np.ndarray, tags: Any) -> np.ndarray:
    """YCbCr to RGB by YCbCrCoefficients and ReferenceBlackWhite; 8 or 16 bit."""
    full = float(np.iinfo(values.dtype).max)
    middle = (full + 1) / 2
    weights = ratios(tags.valueof(529)) or [0.299, 0.587, 0.114]
    limits = ratios(tags.valueof(532)) or [0, full, middle, full, middle, full]
    if len(weights) != 3 or len(limits) != 6 or 0 in (weights[1], *np.diff(limits)[::2]):
        raise ValueError("its YCbCr tags are damaged")
    red, green, blue = weights
    result = np.empty_like(values)
    for top in range(0, len(values), 256):  # floats of a few rows only
        y, cb, cr = np.moveaxis(values[top : top + 256].astype(np.float32), 2, 0)
        y = (y - limits[0]) * (full / (limits[1] - limits[0]))
        cb = (cb - limits[2]) * ((full - middle) / (limits[3] - limits[2]))
        cr = (cr - limits[4]) * ((full - middle) / (limits[5] - limits[4]))
        r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
        g = (y - red * r - blue * b) / green
        rows = np.stack([r, g, b], axis=2)
        result[top : top + 256] = np.clip(rows + 0.5, 0, full).astype(values.dtype)
    return result


def tagged_profile(tags: Any, bits: int) -> bytes | None:
    """Of the tags WhitePoint, PrimaryChromaticities and TransferFunction; None: sRGB."""
    points = [*ratios(tags.valueof(318)), *ratios(tags.valueof(319))]
    transfer = np.asarray(tags.valueof(301, ()), dtype=np.int64)
    if len(points) != 8:
        points = list(SRGB_POINTS)
    near = max(abs(a - b) for a, b in zip(points, SRGB_POINTS, strict=True)) < _NEAR
    try:
        if bits in (8, 16) and transfer.size in (2**bits, 3 * 2**bits):
            tables = transfer.reshape(-1, 2**bits)
            return table_profile(points, [tables[n % len(tables)] for n in range(3)])
        return None if near else rgb_profile(points, SRGB_CURVE)
    except ValueError:
        return None


def ratios(value: Any) -> list[float]:
    numbers = list(value) if isinstance(value, Sequence) else []
    pairs = zip(numbers[::2], numbers[1::2], strict=False)
    return [top / bottom if bottom else 0.0 for top, bottom in pairs]
