"""PNG: patches through OpenCV, checked before they are decoded; large pictures row by row.

Pillow and OpenCV take whole pictures only; `write_png` needs only a strip of rows in memory. A
PNG file (third edition, W3C 2025) consists of chunks: length, name, content, CRC. The rows form
one zlib stream, each preceded by the number of its filter.
"""

import os
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from lasr.errors import UserError

_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → grey, grey and alpha, RGB, RGB and alpha
_SUB, _UP = 1, 2  # filters: the difference to the pixel on the left, or above
_LEVEL = 4  # of zlib: level 6 takes twice the time for files 2 % smaller
_BLOCK = 2**20  # bytes that a thread compresses; a block does not refer to the one before


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode H x W x 3 uint8 RGB. The same pixels and OpenCV version give the same bytes."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not done:
        raise UserError("OpenCV cannot write a PNG", "check the installation: `lasr doctor`")
    return encoded.tobytes()


def decode_png(content: bytes | np.ndarray) -> np.ndarray:
    """Decode a PNG to H x W x 3 uint8 RGB. content: its bytes, also as a uint8 array.

    Raises ValueError: not a picture, or damaged.
    """
    encoded = content if isinstance(content, np.ndarray) else np.frombuffer(content, np.uint8)
    try:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # no bytes at all, or a header that claims a huge size
        raise ValueError("not a readable PNG") from error
    if pixels is None:
        raise ValueError("not a readable PNG")
    return pixels


def write_png(
    path: Path,
    strips: Iterable[np.ndarray],
    shape: tuple[int, int, int],
    bits: int,
    profile: bytes | None = None,
    exif: bytes = b"",
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write strips of rows, each h' x w x c in uint8 or uint16, that together have `shape`.

    Args:
        bits: 8 or 16.
        profile: ICC profile.
        exif: as Pillow's `Exif.tobytes` returns it.
        dpi: horizontal and vertical.

    Raises ValueError: the strips have fewer or more rows than `shape`.
    """
    height, width, channels = shape
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPE[channels], 0, 0, 0)
        _chunk(file, b"IHDR", header)
        if profile:
            _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
        if exif:
            _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
        if xmp:
            _chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        if dpi:
            per_metre = (min(round(value / 0.0254), 2**31 - 1) for value in dpi)
            _chunk(file, b"pHYs", struct.pack(">IIB", *per_metre, 1))
        _chunk(file, b"IDAT", b"\x78\x5e")  # the header of a zlib stream
        above = np.zeros(width * channels * bits // 8, np.uint8)
        rows, check = 0, zlib.adler32(b"")
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="png") as pool:
            for strip in strips:
                big_endian = strip.astype(f">u{bits // 8}", copy=False)
                lines = np.ascontiguousarray(big_endian).view(np.uint8).reshape(len(strip), -1)
                step = max(1, _BLOCK // lines.shape[1])
                blocks = [lines[i : i + step] for i in range(0, len(lines), step)]
                previous = [above, *(block[-1] for block in blocks)]
                pixel = [channels * bits // 8] * len(blocks)
                for filtered, packed in pool.map(_pack, blocks, previous, pixel):
                    check = zlib.adler32(filtered, check)
                    _chunk(file, b"IDAT", packed)
                above = lines[-1]
                rows += len(strip)
        if rows != height:
            raise ValueError(f"{rows} rows of {height}")
        end = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS).flush()  # the last, empty block
        _chunk(file, b"IDAT", end + check.to_bytes(4, "big"))
        _chunk(file, b"IEND", b"")


def _pack(lines: np.ndarray, above: np.ndarray, pixel: int) -> tuple[bytes, bytes]:
    """Rows with their filters, and the same compressed: blocks of deflate that end at a byte.

    Threads do this, as in pigz: the blocks of one stream may be compressed independently. zlib and
    most of NumPy release the interpreter meanwhile.
    """
    filtered = _filter(lines, above, pixel)
    packer = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
    return filtered, packer.compress(filtered) + packer.flush(zlib.Z_SYNC_FLUSH)


def _filter(lines: np.ndarray, above: np.ndarray, pixel: int) -> bytes:
    """Filter each row with Sub or Up, whichever compresses better. pixel: its size in bytes."""
    filtered = np.empty((len(lines), 1 + lines.shape[1]), np.uint8)
    sub = lines.copy()
    sub[:, pixel:] -= lines[:, :-pixel]
    up = lines.copy()
    up[0] -= above
    up[1:] -= lines[:-1]
    # The usual heuristic (section 12.7 of the specification): take the smaller sum of magnitudes
    # of the bytes read as signed.
    magnitudes = [np.minimum(a, -a).sum(axis=1, dtype=np.int64) for a in (sub, up)]
    better = (magnitudes[0] <= magnitudes[1])[:, None]
    filtered[:, :1] = np.where(better, _SUB, _UP)
    np.copyto(filtered[:, 1:], up)
    np.copyto(filtered[:, 1:], sub, where=better)
    return filtered.tobytes()


def _chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + name + content)
    file.write(struct.pack(">I", zlib.crc32(name + content)))


def is_intact_png(content: bytes) -> bool:
    """Whether the checksums in a PNG fit its bytes: those of all chunks, up to its last."""
    at, kind = 8, b""
    while content.startswith(b"\x89PNG\r\n\x1a\n") and kind != b"IEND":
        length = int.from_bytes(content[at : at + 4], "big")
        kind, after = content[at + 4 : at + 8], at + 8 + length
        checksum = content[after : after + 4]
        if zlib.crc32(content[at + 4 : after]) != int.from_bytes(checksum, "big") or not checksum:
            return False
        at = after + 4
    return kind == b"IEND"


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LENGTH = struct.Struct(">I")


def decode_patch(content: bytes | np.ndarray | None, side: int) -> np.ndarray:
    """Decode a PNG of side x side pixels to uint8 RGB, side x side x 3.

    content: its bytes, also as a uint8 array; None and no bytes are accepted as damage. Takes no
    more memory than `side` says, whatever the header claims. Raises ValueError that says what is
    wrong, as the end of a sentence that begins with the row's name.
    """
    if content is None or not len(content):
        raise ValueError("has no picture")
    width, height = png_size(content)
    if (width, height) != (side, side):
        raise ValueError(f"is a picture of {width}x{height} pixels, expected {side}x{side}")
    if not _is_complete(content):
        raise ValueError("has a picture that is cut short")
    try:
        return decode_png(content)
    except ValueError:
        raise ValueError("has a damaged picture") from None


def png_size(content: bytes | np.ndarray) -> tuple[int, int]:
    """Return width and height from the header of a PNG. Raises ValueError: not a PNG."""
    head = bytes(content[:33])  # signature, then the first chunk: length, IHDR, 13 bytes, CRC
    if len(head) < 33 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise ValueError("has a picture that is no PNG")
    if zlib.crc32(head[12:29]) != _LENGTH.unpack_from(head, 29)[0]:
        raise ValueError("has a picture with a damaged header")
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def _is_complete(content: bytes | np.ndarray) -> bool:
    """Whether the chunks, each with its length in front, lead to the one that ends a PNG."""
    view = memoryview(content)  # type: ignore[arg-type]
    position = 8
    while position + 12 <= len(view):
        if bytes(view[position + 4 : position + 8]) == b"IEND":
            return True
        position += 12 + int(_LENGTH.unpack_from(view, position)[0])
    return False
