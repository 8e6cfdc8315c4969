"""Photographs: hash and decode them. No other module of the pipeline opens one."""

import hashlib
import io
import logging
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lasr.pictures.decoders.decode import Damaged
from lasr.pictures.formats import by_suffix, why_not_read
from lasr.pictures.read import (
    RAISE_LIMIT,
    Picture,
    TooLarge,
    check_bytes,
    decode_picture,
    limited,
)
from lasr.pictures.recognise import START, recognise
from lasr.pictures.samples import NotSupported
from pipeline.inputs.photographs import Found
from pipeline.storage import reason

log = logging.getLogger(__name__)

# Raise it when usual files decode to other pixels than before. 0, its first value, adds nothing to
# the fingerprint: parts that were finished before it existed stay valid. docs/formats.md lists the
# unusual files that version 0.1.0 read otherwise.
VERSION = 0
MAX_PIXELS = 2**27  # 134 megapixels: bounds the memory for one photograph
MAX_BYTES = 2**30  # the least that `check_bytes` allows
_BACKDROP = 128  # grey behind transparent pixels: in the middle of the range


class ImagesConfig(BaseModel):
    """The parameters of this stage."""

    model_config = ConfigDict(frozen=True)

    images: list[str] = Field(
        min_length=1,
        description="photographs: folders (searched downwards), files, globs, .txt lists of paths",
    )


def limit_inputs(max_pixels: int) -> tuple[object, ...]:
    """What determines which photographs are left out as too large; nothing for the default."""
    return ("max_pixels", max_pixels) if max_pixels != MAX_PIXELS else ()


def fingerprint_inputs() -> tuple[object, ...]:
    """What determines the pixels of a photograph, besides its bytes."""
    return ("images", VERSION) if VERSION else ()


@dataclass(frozen=True)
class Photograph:
    """A decoded photograph: H x W x 3 uint8, sRGB, upright."""

    found: Found
    image_id: str  # sha256 of the file's bytes, hex
    pixels: np.ndarray
    note: str | None = None  # what the reader ignored, for the catalogue


class Unusable(Exception):
    """Raised for a photograph that cannot be used, with status and reason for the catalogue."""

    def __init__(self, status: str, reason: str, image_id: str | None = None):
        super().__init__(reason)
        self.status, self.reason, self.image_id = status, reason, image_id


def load(found: Found, min_side: int, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read a photograph: hash its bytes and decode them to upright 8-bit sRGB.

    16 bits are rounded to 8, grey becomes RGB, transparency is composited over mid grey. The first
    of several frames is used, and the note says so. Raises Unusable: too_small (below `min_side`
    pixels), too_large, unsupported, unreadable.
    """
    if found.size < 0:
        raise Unusable("unreadable", "not a regular file")
    try:
        check_bytes(found.size, max_pixels)
    except TooLarge as error:
        raise Unusable("too_large", f"{error}; {RAISE_LIMIT}") from error
    try:
        _check_format(found)
        content = found.read_bytes()
    except OSError as error:
        raise Unusable("unreadable", f"cannot be read: {reason(error)}") from error
    image_id = hashlib.sha256(content).hexdigest()
    if not content:
        raise Unusable("unreadable", "the file is empty", image_id)
    picture = _decode(content, found.name, min_side, max_pixels, image_id)
    for note in picture.notes:
        log.warning("%s: %s", found.name, note)
    return Photograph(found, image_id, picture.over(_BACKDROP), "; ".join(picture.notes) or None)


def _check_format(found: Found) -> None:
    """Raise Unusable for a picture in a format that is not read, without reading all of it."""
    if found.member:  # reading a part of it costs as much as all of it
        return
    if "://" not in str(found.path):
        with open(str(found.path), "rb") as file:
            kind = recognise(file, found.name)
    elif (kind := by_suffix(found.name)) and why_not_read(kind):
        with found.path.fs.open_input_file(found.path.key) as stream:
            kind = recognise(io.BytesIO(stream.read(START)), found.name)
    if kind and kind.is_picture and (why := why_not_read(kind, found.name)):
        raise Unusable("unsupported", why)


def _decode(content: bytes, name: str, min_side: int, max_pixels: int, image_id: str) -> Picture:
    within = limited(max_pixels)

    def check(width: int, height: int) -> None:
        within(width, height)
        if min(width, height) < min_side:
            why = f"{width}x{height}: a patch needs {min_side} pixels each way"
            raise Unusable("too_small", why, image_id)

    try:
        return decode_picture(content, check, name)
    except TooLarge as error:
        raise Unusable("too_large", f"{error}; {RAISE_LIMIT}", image_id) from error
    except NotSupported as error:
        raise Unusable("unsupported", str(error), image_id) from error
    except Damaged as error:
        raise Unusable("unreadable", str(error), image_id) from error
    except MemoryError as error:
        raise Unusable("too_large", "not enough memory to decode it", image_id) from error
