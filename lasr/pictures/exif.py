"""EXIF of enlarged pictures: what of an original's is kept, and what is changed.

An EXIF block is a TIFF structure without pixels (Exif 2.32): a directory IFD0 with sub-directories
Exif, GPS and Interoperability, and a second directory for a thumbnail, which is left out.
"""

import io
from typing import Any

from PIL import ExifTags, Image

_Base = ExifTags.Base
_KEPT = (  # of IFD0: the others describe the stored pixels
    _Base.ImageDescription, _Base.Make, _Base.Model, _Base.DateTime, _Base.Artist, _Base.Copyright,
    _Base.HostComputer, _Base.Rating, _Base.XPTitle, _Base.XPComment, _Base.XPAuthor,
    _Base.XPKeywords, _Base.XPSubject,
)  # fmt: skip
_EXIF, _GPS, _INTEROPERABILITY = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop
_MAKER_NOTE = 0x927C  # its offsets are valid only where it was


def tiff_exif(content: bytes) -> bytes | None:
    """The EXIF block of a TIFF: the tags of its first directory that describe the photograph."""
    exif = Image.Exif()
    try:
        exif.load_from_fp(io.BytesIO(content))
        new = _copied(exif)
        return new.tobytes().removeprefix(b"Exif\0\0") if _is_filled(new) else None
    except Exception:  # Pillow raises many types on damaged EXIF
        return None


def enlarged_exif(
    original: bytes | None, software: str, size: tuple[int, int] | None = None
) -> bytes:
    """The EXIF block, with prefix, of an enlarged picture: upright, in sRGB, with its own Software.

    original: of the picture that was enlarged; damaged ones are left out.
    size: width and height of the enlarged picture.
    """
    exif = Image.Exif()
    if original:
        exif.load(b"Exif\0\0" + original)
    try:
        new = _copied(exif)
        new.tobytes()
    except Exception:  # as above
        new = Image.Exif()
    new[_Base.Software] = software
    if _is_filled(new, 1):
        new[_Base.Orientation] = 1
    details = new.get_ifd(_EXIF)
    if details and size:
        details[_Base.ExifImageWidth], details[_Base.ExifImageHeight] = size
        details[_Base.ColorSpace] = 1  # sRGB
    return new.tobytes()


def _copied(exif: Image.Exif) -> Image.Exif:
    new = Image.Exif()
    for tag in _KEPT:
        if tag in exif:
            new[tag] = exif[tag]
    for number in (_EXIF, _GPS):
        if tags := exif.get_ifd(number):
            keep: dict[int, Any] = {
                tag: value
                for tag, value in tags.items()
                if tag not in (_MAKER_NOTE, _INTEROPERABILITY) and not isinstance(value, dict)
            }
            new.get_ifd(number).update(keep)
    return new


def _is_filled(exif: Image.Exif, beyond: int = 0) -> bool:
    return len(exif) > beyond or bool(exif.get_ifd(_EXIF)) or bool(exif.get_ifd(_GPS))
