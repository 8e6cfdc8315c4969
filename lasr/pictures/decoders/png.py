"""PNG: chunks are read here, rows by Pillow, or at 16 bit by libpng.

PNG specification, third edition (W3C 2025). A decoder is handed the chunks with pixels only, so
that long texts, large profiles and animations neither disturb nor change what it returns.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from lasr.pictures.profiles import coded_profile, gamma_profile
from lasr.pictures.samples import (
    MAX_PROFILE,
    Check,
    Metadata,
    NotSupported,
    Samples,
    Space,
    count_notes,
    open_with,
    orientation_of,
    scaled,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6  # colour types
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_KEEP = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_XMP = b"XML:com.adobe.xmp"


def decode(content: bytes, check: Check) -> Samples:
    """Decode a PNG. Raises NotSupported or ValueError (damaged), and what `check` raises."""
    chunks = _chunks(content, check)
    width, height, bits, kind = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    if kind not in _CHANNELS or bits not in (1, 2, 4, 8, 16):
        raise ValueError(f"colour type {kind} with {bits} bits")
    stored = _pixels(chunks, bits, kind)
    if stored.shape != (height, width, _CHANNELS[kind]):
        raise ValueError("its pixels do not fit its header")
    interlaced = chunks[b"IHDR"][12]
    if interlaced or not stored[-1, -1].any():  # where the rows end early, Pillow leaves zeros
        _check_length(
            chunks[b"IDAT"], _row_bytes(width, height, bits * _CHANNELS[kind], interlaced)
        )
    values, alpha = _with_alpha(stored, bits, kind, chunks)
    embedded, notes = _embedded(chunks)
    profile = _meaning(chunks, embedded)
    metadata, orientation = _metadata(chunks, embedded)
    if len(frames := chunks.get(b"acTL", b"")) == 8:  # an APNG
        notes += count_notes(struct.unpack(">I", frames[:4])[0])
    space: Space = "grey" if values.shape[2] == 1 else "rgb"
    return Samples(values, space, alpha, profile, orientation, metadata, notes)


def _chunks(content: bytes, check: Check) -> dict[bytes, bytes]:
    """The chunks by name; `IDAT` is a PNG of only the chunks that hold pixels.

    Of a name that occurs twice the first counts; texts are joined under their keyword. Texts and
    ancillary chunks that are damaged are passed over.
    """
    found: dict[bytes, bytes] = {}
    pixels = [SIGNATURE]
    for name, start, stop in _walk(content):
        data = content[start:stop]
        if name == b"IHDR":
            if len(data) != 13:
                raise ValueError("its header is damaged")
            check(*struct.unpack(">II", data[:8]))
        elif b"IHDR" not in found:
            raise NotSupported("an Apple PNG (CgBI)" if name == b"CgBI" else f"{name!r} first")
        if name in _KEEP:
            pixels.append(content[start - 8 : stop + 4])
            if name == b"IEND":
                break
            if name == b"IDAT":
                continue
        elif name[0] & 32 == 0:
            raise NotSupported(f"a PNG with the critical chunk {name.decode('latin-1')}")
        elif content[stop : stop + 4] != struct.pack(">I", zlib.crc32(name + data)):
            continue
        if name in (b"iTXt", b"zTXt", b"tEXt"):
            keyword = data.partition(b"\0")[0]
            found.setdefault(name + keyword, data)
        else:
            found.setdefault(name, data)
    if b"IHDR" not in found:
        raise ValueError("it ends before its header")
    found[b"IDAT"] = b"".join(pixels)
    return found


def _walk(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and stop of the data of each chunk that is complete."""
    at = len(SIGNATURE)
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        if at + 12 + length > len(content):
            if name == b"IDAT":
                raise ValueError("it ends before its pixels do")
            return
        yield name, at + 8, at + 8 + length
        at += 12 + length


def _pixels(chunks: dict[bytes, bytes], bits: int, kind: int) -> np.ndarray:
    """H x w x c as stored: uint16 where bits = 16, palette indices, otherwise scaled to uint8."""
    if bits == 16 and kind != _GREY:  # Pillow would drop the lower 8 bits
        deep = _deep_pixels(chunks, kind)
        if deep.dtype != np.uint16 or deep.ndim != 3:
            raise ValueError("its pixels do not fit its header")
        return deep
    with open_with("PNG", chunks[b"IDAT"]) as image:
        values = np.asarray(image)
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    return (values.astype(np.uint16) if bits == 16 else values)[
        (...,) if values.ndim == 3 else (..., None)
    ]


def _deep_pixels(chunks: dict[bytes, bytes], kind: int) -> np.ndarray:
    interlaced = chunks[b"IHDR"][12]
    if not interlaced:
        import imagecodecs

        pixels: np.ndarray = imagecodecs.png_decode(chunks[b"IDAT"])
        return pixels
    import cv2  # imagecodecs prints a warning for interlaced files

    decoded = cv2.imdecode(np.frombuffer(chunks[b"IDAT"], np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise ValueError("its pixels are damaged or end early")
    # OpenCV's order is BGR, and BGRA also for grey with alpha.
    order = {_RGB: [2, 1, 0], _GREY_ALPHA: [0, -1], _RGBA: [2, 1, 0, 3]}[kind]
    return decoded[..., order] if decoded.ndim == 3 else decoded


# Adam7 (section 8.1): the first column and row of each pass, and the steps between them.
_PASSES = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip


def _row_bytes(width: int, height: int, bits: int, interlaced: int) -> int:
    """The bytes of all rows, each with the number of its filter. bits: of a pixel."""
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _check_length(png: bytes, expected: int) -> None:
    """Raise ValueError if the chunks IDAT inflate to fewer bytes than the rows have."""
    inflater, found = zlib.decompressobj(), 0
    for name, start, stop in _walk(png):
        rest = png[start:stop] if name == b"IDAT" else b""
        while rest and found < expected:
            found += len(inflater.decompress(rest, 2**20))
            rest = inflater.unconsumed_tail
    if found < expected:
        raise ValueError("its pixels end early")


def _with_alpha(
    stored: np.ndarray, bits: int, kind: int, chunks: dict[bytes, bytes]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Grey or RGB values and alpha: palettes are looked up, tRNS becomes alpha."""
    transparent = chunks.get(b"tRNS")
    if kind in (_GREY_ALPHA, _RGBA):
        return stored[..., :-1], stored[..., -1]
    if kind == _PALETTE:
        entries = chunks.get(b"PLTE", b"")
        if not entries or len(entries) % 3 or len(entries) > 768:
            raise ValueError("its palette is damaged")
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(entries) // 3] = np.frombuffer(entries, np.uint8).reshape(-1, 3)
        index = stored[..., 0]
        if transparent is None:
            return palette[index], None
        opacity = np.full(256, 255, np.uint8)
        opacity[: len(transparent)] = np.frombuffer(transparent[:256], np.uint8)
        return palette[index], opacity[index]
    if transparent is None:
        return stored, None
    if len(transparent) != 2 * _CHANNELS[kind]:
        raise ValueError("its transparent colour is damaged")
    colour = np.frombuffer(transparent, ">u2") & (2**bits - 1)
    full = np.iinfo(stored.dtype).max
    matches = (stored == scaled(colour.astype(np.uint16), bits)).all(axis=2)
    return stored, np.where(matches, 0, full).astype(stored.dtype)


def _embedded(chunks: dict[bytes, bytes]) -> tuple[bytes | None, tuple[str, ...]]:
    """The profile of iCCP, and what is wrong with it."""
    if b"iCCP" not in chunks:
        return None, ()
    _, _, rest = chunks[b"iCCP"].partition(b"\0")
    try:
        return _inflate(rest[1:]), ()
    except zlib.error:
        return None, ("its colour profile is damaged and is ignored",)


def _meaning(chunks: dict[bytes, bytes], embedded: bytes | None) -> bytes | None:
    """The profile that counts: cICP, then iCCP, then sRGB, then gAMA and cHRM (section 4.3)."""
    if len(code := chunks.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, full_range = code
        if matrix != 0 or full_range != 1:
            raise NotSupported("a PNG in narrow range or YCbCr (cICP)")
        return coded_profile(primaries, transfer)
    if embedded or b"sRGB" in chunks:
        return embedded
    gamma, chromaticities = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    points = struct.unpack(">8I", chromaticities) if len(chromaticities) == 32 else None
    exponent = struct.unpack(">I", gamma)[0] / 100_000 if len(gamma) == 4 else None
    return gamma_profile(exponent, [value / 100_000 for value in points] if points else None)


def _metadata(chunks: dict[bytes, bytes], embedded: bytes | None) -> tuple[Metadata, int]:
    exif = chunks.get(b"eXIf") or _raw_profile(chunks)
    xmp = _text(chunks, b"iTXt" + _XMP)
    parsed = Image.Exif()
    if exif:
        exif = exif.removeprefix(b"Exif\0\0")
        try:
            parsed.load(b"Exif\0\0" + exif)
        except Exception:  # Pillow raises many types on damaged EXIF
            exif = None
    orientation = orientation_of(parsed, xmp)
    dpi = None
    if len(size := chunks.get(b"pHYs", b"")) == 9:
        x, y, unit = struct.unpack(">IIB", size)
        dpi = (x * 0.0254, y * 0.0254) if unit == 1 and x and y else None
    return Metadata(exif, xmp, dpi, embedded), orientation


def _text(chunks: dict[bytes, bytes], name: bytes) -> bytes | None:
    """The text of an iTXt chunk."""
    if name not in chunks:
        return None
    _, _, rest = chunks[name].partition(b"\0")
    packed, body = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    try:
        return _inflate(body) if packed else body
    except zlib.error:
        return None


def _raw_profile(chunks: dict[bytes, bytes]) -> bytes | None:
    """EXIF as ImageMagick used to write it: hexadecimal digits in a text."""
    for kind in ("exif", "APP1"):
        keyword = f"Raw profile type {kind}".encode()
        for name in (b"zTXt", b"tEXt"):
            if name + keyword in chunks:
                _, _, body = chunks[name + keyword].partition(b"\0")
                try:
                    text = _inflate(body[1:]) if name == b"zTXt" else body
                    content = bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
                except (zlib.error, ValueError):
                    continue
                if content.startswith(b"Exif\0\0"):
                    return content
    return None


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    result = inflater.decompress(data, MAX_PROFILE)
    if inflater.unconsumed_tail:
        raise NotSupported(f"a profile or text that inflates to more than {MAX_PROFILE} bytes")
    return result
