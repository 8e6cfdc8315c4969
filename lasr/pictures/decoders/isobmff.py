"""Formats of ISO boxes: JPEG 2000, AVIF, HEIC and HEIF.

Pillow decodes 8 bit and imagecodecs more; pillow-heif (the extra `heif`) decodes HEIC and HEIF.
"""

import io
import struct
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from lasr.pictures.profiles import coded_profile
from lasr.pictures.samples import (
    Check,
    Metadata,
    NotSupported,
    Samples,
    Space,
    count_notes,
    frame_notes,
    open_with,
    orientation_of,
    scaled,
)

_CODESTREAM = b"\xff\x4f\xff\x51"  # SOC and SIZ of JPEG 2000
_ENUMERATED = {12: "cmyk", 16: "rgb", 17: "grey", 18: "sycc"}  # colour spaces of the box `colr`


def decode_jpeg_2000(content: bytes, check: Check) -> Samples:
    """Decode a JP2 file or a codestream. Raises NotSupported or ValueError, OSError (damaged)."""
    start = content.find(_CODESTREAM, 0, 2**20)
    if start < 0 or start + 42 > len(content):
        raise ValueError("it ends before its header")
    right, bottom, left, top = struct.unpack_from(">4I", content, start + 8)
    check(right - left, bottom - top)
    (components,) = struct.unpack_from(">H", content, start + 40)
    depths = set(content[start + 42 : start + 42 + 3 * components : 3])
    if len(depths) != 1 or components not in (1, 2, 3, 4):
        raise NotSupported(f"a JPEG 2000 of {components} components or with different depths")
    if (depth := depths.pop()) & 0x80:
        raise NotSupported("a JPEG 2000 of signed values")
    bits = depth + 1
    profile, space = _jp2_colour(content[:start])
    with open_with("JPEG2000", content) as image:
        if bits <= 8 or image.mode in ("P", "PA"):
            mode = image.mode if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") else "RGB"
            values = np.asarray(image if image.mode == mode else image.convert(mode))
        else:
            import imagecodecs

            if space == "sycc":
                raise NotSupported(f"a JPEG 2000 of {bits}-bit YCbCr")
            # The codestream alone: given the whole file, imagecodecs applies its profile, too.
            values = scaled(imagecodecs.jpeg2k_decode(content[start:]), bits)
    values = values if values.ndim == 3 else values[..., None]
    count = values.shape[2]
    if count == 4 and space == "cmyk":
        return Samples(values, "cmyk", None, profile, metadata=Metadata(profile=profile))
    alpha = values[..., -1] if count in (2, 4) else None
    colours = values[..., : count - (alpha is not None)]
    kind: Space = "grey" if colours.shape[2] == 1 else "rgb"
    return Samples(colours, kind, alpha, profile, metadata=Metadata(profile=profile))


def _jp2_colour(boxes: bytes) -> tuple[bytes | None, str | None]:
    """Profile and colour space of the first box `colr` that is understood (15444-1, I.5.3.3)."""
    spaces = list[int]()
    for body in _boxes(boxes, b"colr"):
        if len(body) >= 7 and body[0] == 1:
            spaces.append(struct.unpack_from(">I", body, 3)[0])
        elif len(body) > 131 and body[0] in (2, 3):
            (size,) = struct.unpack_from(">I", body, 3)
            return body[3 : 3 + size], None
    if spaces and (spaces[0] not in _ENUMERATED):
        raise NotSupported(f"a JPEG 2000 in colour space {spaces[0]}")
    return None, _ENUMERATED[spaces[0]] if spaces else None


def decode_avif(content: bytes, check: Check) -> Samples:
    """Decode the first frame of an AVIF. Raises NotSupported (HDR), ValueError, OSError."""
    with open_with("AVIF", content) as image:
        check(*image.size)
        notes = frame_notes(image)
        profile, exif, xmp = (image.info.get(key) for key in ("icc_profile", "exif", "xmp"))
        meaning = profile
        if profile is None:
            for body in _boxes(content[: 2**16], b"colr"):
                if body[:4] == b"nclx" and len(body) >= 8:
                    meaning = coded_profile(*struct.unpack_from(">2H", body, 4))
                    break
        mode = image.mode if image.mode in ("L", "LA", "RGB", "RGBA") else "RGB"
        orientation = orientation_of(image.getexif())
        bits = _avif_bits(content)
        values = _deep_avif(content, bits) if bits > 8 else np.asarray(image.convert(mode))
    values = values if values.ndim == 3 else values[..., None]
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    colours = values[..., : channels - (alpha is not None)]
    metadata = Metadata(exif and exif.removeprefix(b"Exif\0\0"), xmp, None, profile)
    kind: Space = "grey" if colours.shape[2] == 1 else "rgb"
    return Samples(colours, kind, alpha, meaning, orientation, metadata, notes)


def _avif_bits(content: bytes) -> int:
    """8, 10 or 12, of the box `av1C` (AV1 in ISOBMFF, 2.3)."""
    body = next(_boxes(content[: 2**16], b"av1C"), b"\0\0\0")
    return 12 if body[2] & 0x20 else 10 if body[2] & 0x40 else 8


def _deep_avif(content: bytes, bits: int) -> np.ndarray:
    import imagecodecs

    values: np.ndarray = imagecodecs.avif_decode(content, index=0)
    return scaled(np.minimum(values, 2**bits - 1), bits)


def _boxes(content: bytes, name: bytes) -> Iterator[bytes]:
    """The bodies of the boxes of a name, wherever they are; each preceded by its length."""
    at = content.find(name)
    while at >= 4:
        (size,) = struct.unpack_from(">I", content, at - 4)
        if 8 <= size <= len(content) - at + 4:
            yield content[at + 4 : at - 4 + size]
        at = content.find(name, at + 4)


def decode_heif(content: bytes, check: Check) -> Samples:
    """Decode the primary picture of a HEIF file, 8 to 16 bit; libheif turns it upright.

    Raises NotSupported (HDR), ValueError and others of pillow-heif (damaged).
    """
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False)
    picture = file[file.primary_index]
    check(*picture.size)
    values, info = np.asarray(picture), cast(dict[str, Any], picture.info)
    if (bits := info["bit_depth"]) > 8:  # pillow-heif fills the lower bits with zeros
        values = scaled(values >> (16 - bits), bits)
    values = values if values.ndim == 3 else values[..., None]
    channels = values.shape[2]
    alpha = values[..., -1] if channels in (2, 4) else None
    colours = values[..., : channels - (alpha is not None)]
    profile, exif, xmp = (info.get(key) for key in ("icc_profile", "exif", "xmp"))
    meaning, nclx = profile, info.get("nclx_profile")
    if not profile and nclx:
        meaning = coded_profile(nclx["color_primaries"], nclx["transfer_characteristics"])
    notes = count_notes(len(file))
    metadata = Metadata(exif and exif.removeprefix(b"Exif\0\0"), xmp, None, profile)
    kind: Space = "grey" if colours.shape[2] == 1 else "rgb"
    return Samples(colours, kind, alpha, meaning, 1, metadata, notes)
