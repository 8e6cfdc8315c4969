"""Decode a patch of a manifest: a PNG whose size is known before a pixel is decoded.

A PNG of 100 bytes can claim 60,000 x 60,000 pixels, and one of 10 MB can hold them: decoders then
allocate 10 GB. Rows of a manifest may come from anywhere, so the header is compared with the size
of the row first, and the chunks are followed to the end, which finds a cut file.
"""

import struct
import zlib

import numpy as np

from lasr.pictures.png import decode_png

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
