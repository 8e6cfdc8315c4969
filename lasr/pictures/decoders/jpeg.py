"""JPEG through libjpeg-turbo: Pillow for 8 bit, imagecodecs for 12 bit."""

import struct

import numpy as np
from PIL import Image

from lasr.pictures.profiles import adobe_profile
from lasr.pictures.samples import (
    Check,
    Metadata,
    NotSupported,
    Samples,
    Space,
    open_with,
    orientation_of,
    scaled,
)

_SPACES: dict[int, Space] = {1: "grey", 3: "rgb", 4: "cmyk"}
# ITU-T T.81, table B.1: kinds of frames that libjpeg-turbo does not decode.
_FRAMES = {
    0xC3: "lossless JPEG", 0xC5: "hierarchical JPEG", 0xC6: "hierarchical JPEG",
    0xC7: "hierarchical JPEG", 0xCB: "lossless JPEG", 0xCD: "hierarchical JPEG",
    0xCE: "hierarchical JPEG", 0xCF: "hierarchical JPEG", 0xF7: "JPEG-LS",
}  # fmt: skip
_ICC = b"ICC_PROFILE\0"
_MISSING = "a part of its colour profile is missing: it is ignored"


def decode(content: bytes, check: Check) -> Samples:
    """Decode a JPEG; of several pictures in the file (MPO) the first.

    Raises NotSupported or ValueError and OSError (damaged), and what `check` raises.
    """
    frame, bits, height, width, components, segments = _header(content)
    check(width, height)
    if frame in _FRAMES:
        raise NotSupported(f"a {_FRAMES[frame]} file")
    if bits not in (8, 12) or components not in _SPACES:
        raise NotSupported(f"a JPEG with {bits} bits and {components} components")
    notes: tuple[str, ...] = ()
    profile = _joined(segments)
    if profile == b"":
        profile, notes = None, (_MISSING,)
    with open_with("JPEG", content) if bits == 8 else Image.new("L", (1, 1)) as image:
        if bits == 12:
            values = _decode_12_bit(content, components)
            exif, xmp, dpi = _first(segments, 0xE1, b"Exif\0\0"), None, None
        else:
            try:
                values = np.asarray(image)
            except OSError as error:
                if frame in (0xC9, 0xCA) and "truncated" not in str(error):
                    raise NotSupported("an arithmetic-coded JPEG") from error
                raise
            exif, xmp, dpi = (image.info.get(key) for key in ("exif", "xmp", "dpi"))
    tags = Image.Exif()
    if exif:
        try:
            tags.load(exif)
        except Exception:  # Pillow raises many types on damaged EXIF
            exif = None
    if profile is None and exif and not notes and _marked_as_adobe_rgb(tags):
        meaning: bytes | None = adobe_profile() if components == 3 else None
    else:
        meaning = profile
    return Samples(
        values if values.ndim == 3 else values[..., None],
        _SPACES[components],
        profile=meaning,
        orientation=orientation_of(tags, xmp),
        metadata=Metadata(exif and exif.removeprefix(b"Exif\0\0"), xmp, _valid(dpi), profile),
        notes=notes,
    )


def _header(content: bytes) -> tuple[int, int, int, int, int, list[tuple[int, bytes]]]:
    """Kind of frame, bits, height, width, components; the APP segments before the frame."""
    at, segments = 2, list[tuple[int, bytes]]()
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            at += 1  # libjpeg also searches for the next marker
            continue
        marker = content[at + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", content, at + 2)
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if at + 10 > len(content):
                break
            bits, height, width, components = struct.unpack_from(">BHHB", content, at + 4)
            return marker, bits, height, width, components, segments
        if 0xE0 <= marker <= 0xEF:
            segments.append((marker, content[at + 4 : at + 2 + length]))
        at += 2 + length
    raise ValueError("it ends before its header")


def _joined(segments: list[tuple[int, bytes]]) -> bytes | None:
    """The ICC profile of the APP2 segments; empty if one of them is missing."""
    parts = [data for marker, data in segments if marker == 0xE2 and data.startswith(_ICC)]
    if not parts:
        return None
    numbered = {data[12]: data[14:] for data in parts if len(data) > 14}
    count = parts[0][13] if len(parts[0]) > 14 else 0
    if sorted(numbered) != list(range(1, count + 1)):
        return b""
    return b"".join(numbered[number] for number in sorted(numbered))


def _first(segments: list[tuple[int, bytes]], marker: int, prefix: bytes) -> bytes | None:
    return next((d for m, d in segments if m == marker and d.startswith(prefix)), None)


def _decode_12_bit(content: bytes, components: int) -> np.ndarray:
    import imagecodecs

    values = imagecodecs.jpeg8_decode(content)
    if values.dtype != np.uint16 or (1 if values.ndim == 2 else values.shape[2]) != components:
        raise NotSupported("a 12-bit JPEG of an unknown kind")
    values = np.minimum(values, 4095)
    return scaled(
        4095 - values if components == 4 else values, 12
    )  # inverted, as Adobe writes CMYK


def _marked_as_adobe_rgb(tags: Image.Exif) -> bool:
    """Whether EXIF states Adobe RGB without a profile, as cameras do (DCF 2.0, option files)."""
    try:
        exif, interoperability = tags.get_ifd(0x8769), tags.get_ifd(0xA005)
    except Exception:  # as above
        return False
    return exif.get(0xA001) != 1 and str(interoperability.get(1, "")).startswith("R03")


def _valid(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    try:
        return (float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None
    except (ValueError, ZeroDivisionError, TypeError):
        return None
