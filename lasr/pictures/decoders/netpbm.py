"""Netpbm (PBM, PGM, PPM) and its relative PFM, as `man 5 ppm` and its siblings define them."""

import re

import numpy as np

from lasr.pictures.samples import Check, NotSupported, Samples, from_float, scaled

_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([^\s#]+)")
_LONGEST = 16  # digits of a number; some writers pad with zeros
_COLOUR = {b"P3": 3, b"P6": 3, b"PF": 3}


def decode(content: bytes, check: Check) -> Samples:
    """Decode the first picture of a file. Raises NotSupported or ValueError (damaged)."""
    kind = content[:2]
    channels = _COLOUR.get(kind, 1)
    bitmap = kind in (b"P1", b"P4")
    numbers, at = list[bytes](), 2
    for _ in range(2 if bitmap else 3):
        token = _TOKEN.match(content, at, at + 2**16)
        if token is None:
            raise ValueError("its header is damaged")
        numbers.append(token[1])
        at = token.end()
    width, height = _integer(numbers[0]), _integer(numbers[1])
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")
    check(width, height)
    shape = (height, width, channels)
    body = content[at + 1 :] if kind in (b"P4", b"P5", b"P6", b"Pf", b"PF") else content[at:]
    if kind in (b"Pf", b"PF"):
        floats = _read(body, "<f4" if _scale(numbers[2]) < 0 else ">f4", shape)
        values, notes = from_float(floats[::-1])  # rows run upwards
        return Samples(values, "grey" if channels == 1 else "rgb", notes=notes)
    if kind == b"P4":
        rows = _read(body, np.uint8, (height, (width + 7) // 8, 1))[..., 0]
        values = (1 - np.unpackbits(rows, axis=1)[:, :width, None]) * np.uint8(255)
        return Samples(values, "grey")
    if kind == b"P1":
        digits = np.frombuffer(b"".join(body.split()), np.uint8)[: height * width]
        if digits.size < height * width or not np.isin(digits, (48, 49)).all():
            raise ValueError("its pixels are damaged or end early")
        return Samples(((49 - digits) * np.uint8(255)).reshape(shape), "grey")
    largest = _integer(numbers[2])
    if not 0 < largest < 65_536:
        raise NotSupported(f"a {kind.decode()} picture with the maximum {largest}")
    if kind in (b"P2", b"P3"):
        words = body.split(maxsplit=height * width * channels)[: height * width * channels]
        if len(words) < height * width * channels:
            raise ValueError("its pixels end early")
        if max(map(len, words)) > _LONGEST or not all(map(bytes.isdigit, words)):
            raise ValueError("something among its pixels is no number")
        stored = np.array(words).astype(np.int64).reshape(shape)
    else:
        stored = _read(body, np.uint8 if largest < 256 else ">u2", shape)
    if stored.min() < 0 or stored.max() > largest:
        raise ValueError(f"values beyond its maximum {largest}")
    return Samples(_at_depth(stored, largest), "grey" if channels == 1 else "rgb")


def _integer(text: bytes) -> int:
    if not text.isdigit() or len(text) > _LONGEST:
        raise ValueError(f"its header has {text[:_LONGEST].decode('latin-1')} for a number")
    return int(text)


def _scale(text: bytes) -> float:
    """The scale of a PFM: its sign is the byte order, its size says nothing of the pixels."""
    scale = float(text)
    if not scale or not np.isfinite(scale):
        raise ValueError(f"its header has the scale {scale}")
    return scale


def _read(body: bytes, dtype: str | type, shape: tuple[int, int, int]) -> np.ndarray:
    count = shape[0] * shape[1] * shape[2]
    if len(body) < count * np.dtype(dtype).itemsize:
        raise ValueError("its pixels end early")
    return np.frombuffer(body, dtype, count).reshape(shape)


def _at_depth(stored: np.ndarray, largest: int) -> np.ndarray:
    if largest in (255, 65_535):
        return scaled(stored, 8 if largest == 255 else 16)
    full, dtype = (255, np.uint8) if largest < 256 else (65_535, np.uint16)
    table = (np.arange(largest + 1, dtype=np.int64) * full + largest // 2) // largest
    result: np.ndarray = table.astype(dtype)[stored]
    return result
