"""PNG, TIFF and BMP files written by hand, in every kind that the formats allow."""

import random
import struct
import zlib
from collections.abc import Sequence

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour types of PNG


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    samples: np.ndarray,
    kind: int,
    bits: int,
    before: Sequence[tuple[bytes, bytes]] = (),
    interlaced: bool = False,
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of h x w x c samples as stored. before, after: chunks around those with the pixels."""
    height, width = samples.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    # Adam7: first row and column, and the steps between them.
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    parts = (
        [samples[y::down, x::across] for y, x, down, across in passes] if interlaced else [samples]
    )
    rows = b"".join(b"\0" + packed(row, bits) for part in parts if part.size for row in part)
    chunks = [(b"IHDR", head), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def packed(row: np.ndarray, bits: int, order: str = ">") -> bytes:
    """One row of samples, with `bits` each, padded to a whole byte."""
    flat = row.ravel()
    if bits in (8, 16, 32, 64):
        return flat.astype(flat.dtype.newbyteorder(order)).tobytes()
    digits = (flat[:, None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.astype(np.uint8)).tobytes()


def tiff(
    samples: np.ndarray, bits: int, order: str = "<", planar: bool = False, **tags: object
) -> bytes:
    """An uncompressed TIFF of h x w x c samples in two strips per plane.

    tags: t262=2 and so on: an integer (SHORT), a tuple of them, a pair per rational as
    ("rational", …), or bytes.
    """
    height, width, channels = samples.shape
    half = -(-height // 2)
    planes = [samples[..., n : n + 1] for n in range(channels)] if planar else [samples]
    strips = [
        b"".join(packed(row, bits, order) for row in plane[top : top + half])
        for plane in planes
        for top in range(0, height, half)
    ]
    entries: dict[int, object] = {
        256: width, 257: height, 258: (bits,) * channels, 259: 1, 277: channels, 278: half,
        284: 1 + planar,
    } | {int(name[1:]): value for name, value in tags.items()}  # fmt: skip
    data, offsets = bytearray(8), []
    for strip in strips:
        offsets.append(len(data))
        data += strip + bytes(len(strip) % 2)
    longs = {273: offsets, 279: [len(strip) for strip in strips]}
    table = b""
    for tag in sorted({**entries, **longs}):
        kind, count, value = _encoded(longs.get(tag) or entries[tag], order, tag in longs)
        if len(value) > 4:
            at = len(data)
            data += value + bytes(len(value) % 2)
            value = struct.pack(order + "I", at)
        table += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    at = len(data)
    data += struct.pack(order + "H", len(table) // 12) + table + bytes(4)
    data[:8] = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return bytes(data)


def _encoded(value: object, order: str, longs: bool) -> tuple[int, int, bytes]:
    if isinstance(value, bytes):
        return 7, len(value), value
    if isinstance(value, tuple) and value and value[0] == "rational":
        return 5, (len(value) - 1) // 2, struct.pack(f"{order}{len(value) - 1}I", *value[1:])
    numbers = [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]
    return (
        (4 if longs else 3),
        len(numbers),
        struct.pack(f"{order}{len(numbers)}{'I' if longs else 'H'}", *numbers),
    )


def bmp(
    rows: Sequence[bytes],
    width: int,
    bits: int,
    palette: bytes = b"",
    compression: int = 0,
    masks: Sequence[int] = (),
    profile: bytes = b"",
    top_down: bool = False,
) -> bytes:
    """A BMP of rows as stored, from the top; version 3, or 5 where it has masks or a profile."""
    body = b"".join(row + bytes(-len(row) % 4) for row in (rows if top_down else rows[::-1]))
    if compression in (1, 2):
        body = b"".join(rows)
    five = bool(masks or profile)
    size = 124 if five else 40
    start = 14 + size + len(palette)
    height = -len(rows) if top_down else len(rows)
    head = struct.pack(
        "<IiiHHIIiiII",
        size,
        width,
        height,
        1,
        bits,
        compression,
        len(body),
        2835,
        2835,
        len(palette) // 4,
        0,
    )
    if five:
        red, green, blue, alpha = (*masks, 0, 0, 0, 0)[:4]
        space = b"DEBM" if profile else b"BGRs"
        head += struct.pack(
            "<4I4s36x12xIIII",
            red,
            green,
            blue,
            alpha,
            space,
            4,
            size + len(palette) + len(body),
            len(profile),
            0,
        )
    return (
        struct.pack("<2sIHHI", b"BM", start + len(body) + len(profile), 0, 0, start)
        + head
        + palette
        + body
        + profile
    )


def wrapped_in_tiff(jpeg: bytes, width: int, height: int) -> bytes:
    """An old-style JPEG in TIFF (compression 6): tags 513 and 514 locate the whole file."""
    tags: dict[int, object] = {
        256: width,
        257: height,
        258: (8, 8, 8),
        259: 6,
        262: 6,
        277: 3,
        278: height,
        512: 1,
    }
    longs = {273: [8], 279: [len(jpeg)], 513: [8], 514: [len(jpeg)]}
    data, table = bytearray(8) + jpeg + bytes(len(jpeg) % 2), b""
    for tag in sorted({**tags, **longs}):
        kind, count, value = _encoded(longs.get(tag) or tags[tag], "<", tag in longs)
        if len(value) > 4:
            at = len(data)
            data += value
            value = struct.pack("<I", at)
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    at = len(data)
    data += struct.pack("<H", len(table) // 12) + table + bytes(4)
    data[:8] = b"II*\0" + struct.pack("<I", at)
    return bytes(data)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bits turned over, bytes overwritten, cut out, doubled or appended, or the end lost."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 30))):
        at, kind = rng.randrange(max(len(data), 1)), rng.randrange(6)
        if not data:
            break
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif kind == 2:
            del data[at : at + rng.randrange(1, 200)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 200)]
        elif kind == 4:
            del data[at:]
        else:
            data += bytes(rng.randrange(256) for _ in range(rng.randrange(50)))
    return bytes(data)
