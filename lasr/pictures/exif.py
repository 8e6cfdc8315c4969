"""EXIF of enlarged pictures: what of an original's is copied, and what is changed.

An EXIF block is a TIFF structure without pixels (Exif 2.32, section 4.5): a directory IFD0 that
points to the directories Exif and GPS. Entries are copied byte for byte, whatever their type or
encoding. Left out are the thumbnail, the interoperability directory, and all that describes the
stored pixels. A maker note is copied as it is; offsets that it may hold are not adapted.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lasr.pictures.samples import open_file

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_ASCII, _SHORT, _LONG = 2, 3, 4
_ORIENTATION, _SOFTWARE, _EXIF, _GPS = 274, 305, 34665, 34853
_COLOUR_SPACE, _WIDTH, _HEIGHT, _INTEROPERABILITY = 40961, 40962, 40963, 40965
_MAKER_NOTE = 37500
# DocumentName, ImageDescription, Make, Model, DateTime, Artist, HostComputer, Rating (twice),
# Copyright, and title, comment, author, keywords and subject as Windows writes them.
_KEPT = {269, 270, 271, 272, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096)}


@dataclass(frozen=True)
class _Entry:
    type: int
    count: int
    data: bytes  # in the byte order of the block


Directory = dict[int, _Entry]


@dataclass(frozen=True)
class Exif:
    """The directories of an EXIF block that results inherit. order: < or >, as in struct."""

    order: str = "<"
    main: Directory = field(default_factory=dict)
    below: dict[int, Directory] = field(default_factory=dict)  # by the tag that points to it

    @property
    def is_empty(self) -> bool:
        return not self.main and not self.below


def parse_exif(block: bytes | None) -> Exif:
    """Parse an EXIF block, or a whole TIFF file; damaged entries are passed over."""
    if not block or block[:4] not in (b"II*\0", b"MM\0*"):
        return Exif()
    order = "<" if block[:2] == b"II" else ">"
    try:
        first = _read(block, order, struct.unpack_from(order + "I", block, 4)[0])
    except struct.error:
        return Exif()
    below: dict[int, Directory] = {}
    for tag in (_EXIF, _GPS):
        if (pointer := first.get(tag)) and len(pointer.data) == 4:
            try:
                directory = _read(block, order, struct.unpack(order + "I", pointer.data)[0])
            except struct.error:
                continue
            directory.pop(_INTEROPERABILITY, None)
            if directory:
                below[tag] = directory
    return Exif(order, {tag: entry for tag, entry in first.items() if tag in _KEPT}, below)


def exif_block(exif: Exif) -> bytes | None:
    """The block of these directories, without the prefix `Exif\\0\\0`; None if they are empty."""
    if exif.is_empty:
        return None
    start = (b"II*\0" if exif.order == "<" else b"MM\0*") + struct.pack(exif.order + "I", 8)
    return start + _written(exif.order, exif.main, exif.below, 8)


def enlarged_exif(
    original: bytes | None, software: str, size: tuple[int, int], limit: int | None = None
) -> bytes:
    """The EXIF block, without prefix, of an upright sRGB picture of this width and height.

    limit: bytes that the format can hold; beyond it the maker note is left out, then all but the
    tag Software.
    """
    exif = parse_exif(original)
    block = exif_block(_enlarged(exif, software, size)) or b""
    if limit and len(block) > limit and _EXIF in exif.below:
        exif.below[_EXIF].pop(_MAKER_NOTE, None)
        block = exif_block(_enlarged(exif, software, size)) or b""
    if limit and len(block) > limit:
        block = exif_block(_enlarged(Exif(), software, size)) or b""
    return block


def software_tag(file: BinaryIO) -> str | None:
    """The tag Software of an open picture file, from EXIF or, in PNG, from a text.

    No pixel is decoded, and of a PNG nothing behind the first pixels is looked at. None: no such
    tag, or a format that is not written here. Raises nearly anything for damaged files.
    """
    file.seek(0)
    if file.read(8) == b"\x89PNG\r\n\x1a\n":
        return _png_software(file)
    file.seek(0)
    image = open_file(file)
    tag = None if image is None else image.getexif().get(_SOFTWARE)
    return None if tag is None else str(tag)


def _png_software(file: BinaryIO) -> str | None:
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"IDAT":
            return None
        if name == b"eXIf" and (tag := _software(file.read(length))):
            return tag
        if name == b"tEXt" and (text := file.read(length)).startswith(b"Software\0"):
            return text[9:].decode("latin-1")
        file.seek(4 if name in (b"eXIf", b"tEXt") else length + 4, 1)
    return None


def _software(block: bytes) -> str | None:
    if block[:4] not in (b"II*\0", b"MM\0*"):
        return None
    order = "<" if block[:2] == b"II" else ">"
    try:
        entry = _read(block, order, struct.unpack_from(order + "I", block, 4)[0]).get(_SOFTWARE)
    except struct.error:
        return None
    return entry.data.rstrip(b"\0").decode("utf-8", "replace") if entry else None


def append_exif(path: Path, original: bytes | None, size: tuple[int, int]) -> None:
    """Add the inherited EXIF to a TIFF file, which has the byte order of `original`.

    A new first directory is appended: the entries of the old one and the inherited ones. BigTIFF
    files stay as they are.
    """
    exif = parse_exif(original)
    with open(path, "r+b") as file:
        start = file.read(8)
        if exif.is_empty or start[:4] != (b"II*\0" if exif.order == "<" else b"MM\0*"):
            return
        directory = _raw_directory(file, exif.order, struct.unpack(exif.order + "I", start[4:])[0])
        added = _enlarged(exif, None, size)
        at = file.seek(0, 2)
        at += file.write(bytes(at % 2))  # directories begin at even offsets
        file.write(_written(exif.order, added.main, added.below, at, directory))
        file.seek(4)
        file.write(struct.pack(exif.order + "I", at))


def byte_order(original: bytes | None) -> str:
    """The byte order that `append_exif` needs of the file, < or >."""
    return parse_exif(original).order


def _enlarged(exif: Exif, software: str | None, size: tuple[int, int]) -> Exif:
    order = exif.order
    main, below = dict(exif.main), dict(exif.below)
    if software is not None:
        text = software.encode() + b"\0"
        main[_SOFTWARE] = _Entry(_ASCII, len(text), text)
        main[_ORIENTATION] = _Entry(_SHORT, 1, struct.pack(order + "H", 1))
    if _EXIF in below:
        below[_EXIF] = below[_EXIF] | {
            _COLOUR_SPACE: _Entry(_SHORT, 1, struct.pack(order + "H", 1)),  # sRGB
            _WIDTH: _Entry(_LONG, 1, struct.pack(order + "I", size[0])),
            _HEIGHT: _Entry(_LONG, 1, struct.pack(order + "I", size[1])),
        }
    return Exif(order, main, below)


def _read(block: bytes, order: str, at: int) -> Directory:
    """Raises struct.error: no directory there."""
    directory: Directory = {}
    (count,) = struct.unpack_from(order + "H", block, at)
    for number in range(count):
        entry = at + 2 + 12 * number
        if entry + 12 > len(block):
            break
        tag, kind, length = struct.unpack_from(order + "HHI", block, entry)
        size = _SIZES.get(kind, 0) * length
        start = entry + 8 if size <= 4 else struct.unpack_from(order + "I", block, entry + 8)[0]
        if 0 < size <= len(block) - start:
            directory[tag] = _Entry(kind, length, block[start : start + size])
    return directory


def _raw_directory(file: BinaryIO, order: str, at: int) -> dict[int, bytes]:
    """The 12 bytes of each entry, by tag."""
    file.seek(at)
    (count,) = struct.unpack(order + "H", file.read(2))
    entries = (file.read(12) for _ in range(count))
    return {struct.unpack(order + "H", entry[:2])[0]: entry for entry in entries}


def _written(
    order: str,
    main: Directory,
    below: dict[int, Directory],
    at: int,
    raw: dict[int, bytes] | None = None,
) -> bytes:
    """The bytes of a directory at offset `at`, its data, and the directories below it.

    raw: entries that are taken over as they are.
    """
    raw = raw or {}
    main = {tag: entry for tag, entry in main.items() if tag not in raw}
    data_at = at + 2 + 12 * (len(main) + len(below) + len(raw)) + 4
    entries, data = dict(raw), b""
    for tag, entry in main.items():
        value = entry.data.ljust(4, b"\0")
        if len(value) > 4:
            value = struct.pack(order + "I", data_at + len(data))
            data += entry.data + bytes(len(entry.data) % 2)
        entries[tag] = struct.pack(order + "HHI", tag, entry.type, entry.count) + value
    for tag, directory in below.items():
        offset = data_at + len(data)
        entries[tag] = struct.pack(order + "HHII", tag, _LONG, 1, offset)
        data += _written(order, directory, {}, offset)
        data += bytes(len(data) % 2)
    table = b"".join(entries[tag] for tag in sorted(entries))
    return struct.pack(order + "H", len(entries)) + table + bytes(4) + data
