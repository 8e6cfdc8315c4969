"""Which format a file has, by its content or else by its suffix."""

import struct
from pathlib import Path
from typing import BinaryIO

from lasr.pictures.formats import PICTURES, Format, Reader, by_suffix

START = 4096  # bytes at the start of a file that tell its format


def recognise(file: BinaryIO, name: str = "") -> Format | None:
    """The format of an open file: by its content if that tells, else by the suffix of its name.

    Returns None if neither tells. Raises OSError.
    """
    return by_content(file, name) or by_suffix(name)


def by_content(file: BinaryIO, name: str = "") -> Format | None:
    """The format of an open file by its content; None if that does not tell.

    Reads the first START bytes, and the first directory of a TIFF. The position is 0 afterwards.
    name: the file's; it tells which camera wrote a raw file. Raises OSError.
    """
    file.seek(0)
    found = _by_content(file.read(START), Path(name).suffix.lower(), file)
    file.seek(0)
    return found


_MAGIC: tuple[tuple[int, bytes, str, Reader], ...] = (  # offset, bytes, name
    (0, b"\xff\xd8\xff", "JPEG", Reader.BASE),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", Reader.BASE),
    (0, b"GIF87a", "GIF", Reader.BASE),
    (0, b"GIF89a", "GIF", Reader.BASE),
    (8, b"WEBPVP8", "WebP", Reader.BASE),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000", Reader.BASE),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", Reader.BASE),
    (0, b"qoif", "QOI", Reader.NONE),
    (0, b"FUJIFILMCCD-RAW", "RAF", Reader.RAW),
    (0, b"IIU\x00", "RW2", Reader.RAW),
    (0, b"IIRO", "ORF", Reader.RAW),
    (0, b"IIRS", "ORF", Reader.RAW),
    (0, b"MMOR", "ORF", Reader.RAW),
    (0, b"\x00MRM", "MRW", Reader.RAW),
    (0, b"FOVb", "X3F", Reader.RAW),
    (6, b"HEAPCCDR", "CRW", Reader.RAW),
    (0, b"\xff\x0a", "JPEG XL", Reader.NONE),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL", Reader.NONE),
    (0, b"II\xbc\x01", "JPEG XR", Reader.NONE),
    (0, b"8BPS", "Photoshop", Reader.NONE),
    (0, b"gimp xcf", "GIMP", Reader.NONE),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", Reader.NONE),
    (0, b"#?RADIANCE", "Radiance HDR", Reader.NONE),
    (0, b"#?RGBE", "Radiance HDR", Reader.NONE),
    (0, b"SIMPLE  =", "FITS", Reader.NONE),
    (128, b"DICM", "DICOM", Reader.NONE),
    (0, b"BPG\xfb", "BPG", Reader.NONE),
    (0, b"FLIF", "FLIF", Reader.NONE),
    (0, b"DDS ", "DDS", Reader.NONE),
    (0, b"P7\n", "PAM", Reader.NONE),
    (0, b"farbfeld", "farbfeld", Reader.NONE),
    (0, b"\x8aMNG\r\n\x1a\n", "MNG", Reader.NONE),
    (0, b"\x8bJNG\r\n\x1a\n", "MNG", Reader.NONE),
    (0, b"\x59\xa6\x6a\x95", "Sun raster", Reader.NONE),
    # Pillow would run Ghostscript on it.
    (0, b"%!PS", "PostScript", Reader.NONE),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript", Reader.NONE),
    (0, b"%PDF", "a PDF document", Reader.NO_PICTURE),
    (0, b"PK\x03\x04", "a zip archive", Reader.NO_PICTURE),
    (0, b"PK\x05\x06", "a zip archive", Reader.NO_PICTURE),
    (0, b"\x1f\x8b", "a gzip archive", Reader.NO_PICTURE),
    (0, b"Rar!\x1a\x07", "a RAR archive", Reader.NO_PICTURE),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", Reader.NO_PICTURE),
    (0, b"\xfd7zXZ\x00", "an xz archive", Reader.NO_PICTURE),
    (0, b"BZh", "a bzip2 archive", Reader.NO_PICTURE),
    (257, b"ustar", "a tar archive", Reader.NO_PICTURE),
    (8, b"AVI LIST", "a video", Reader.NO_PICTURE),
    (0, b"\x1a\x45\xdf\xa3", "a video", Reader.NO_PICTURE),
    (0, b"SQLite format 3\x00", "a database", Reader.NO_PICTURE),
    (0, b"\x7fELF", "a program", Reader.NO_PICTURE),
    (0, b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)", Reader.NO_PICTURE),
)  # fmt: skip
_BRANDS = {  # of ISO base media files: HEIF, AVIF, CR3, videos
    **dict.fromkeys((b"avif", b"avis"), Format("AVIF", Reader.BASE)),
    **dict.fromkeys(
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), Format("HEIC", Reader.HEIF)
    ),
    b"crx ": Format("CR3", Reader.RAW),
    **dict.fromkeys((b"mif1", b"mif2", b"msf1", b"miaf"), Format("HEIF", Reader.HEIF)),
}


def _by_content(start: bytes, suffix: str, file: BinaryIO) -> Format | None:
    for offset, magic, name, reader in _MAGIC:
        if start.startswith(magic, offset):
            return Format(name, reader)
    if start[4:8] == b"ftyp":
        return _by_brand(start)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(start, suffix, file)
    if start[:2] == b"BM" and len(start) > 18 and start[14] in (12, 40, 52, 56, 64, 108, 124):
        return Format("BMP", Reader.BASE)
    if (
        start[:1] == b"P"
        and start[1:2] in b"123456fF"
        and (start[2:3].isspace() or start[2:3] == b"#")
    ):
        return Format("PNM", Reader.BASE)
    return _text(start)


def _by_brand(start: bytes) -> Format:
    """Of an ISO base media file: the major brand tells, or else the first known compatible one."""
    size = min(int.from_bytes(start[:4], "big"), len(start))
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, size, 4))]
    known = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    if not known:
        return Format("a video", Reader.NO_PICTURE)
    # `mif1` says little: the codec is among the other brands.
    return next((one for one in known if one.name != "HEIF"), known[0])


def _text(start: bytes) -> Format | None:
    if b"\0" in start or not start.strip():
        return None
    lower = start[:1024].decode("latin-1").lstrip("\xef\xbb\xbf \t\r\n").lower()
    if "<svg" in lower and lower.startswith("<"):
        return Format("SVG", Reader.NONE)
    if lower.startswith(("<!doctype html", "<html", "<head", "<body")) or "<html" in lower:
        return Format("a web page (HTML)", Reader.NO_PICTURE)
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # else a character that the end of `start` cuts
            return None
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in start)
    return None if controls else Format("text", Reader.NO_PICTURE)


_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 262, 330, 50706
_SENSOR = {32803, 34892}  # photometric: colour filter array, linear raw


def _tiff(start: bytes, suffix: str, file: BinaryIO) -> Format:
    """Tell camera raw from TIFF: most raw formats are TIFFs whose first picture is a thumbnail."""
    raw = PICTURES.get(suffix)
    named = raw if raw and raw.reader is Reader.RAW else None
    if start[8:10] == b"CR":
        return Format("CR2", Reader.RAW)
    try:
        first = _directory(file, start[:4], None)
        if _DNG_VERSION in first:
            return Format("DNG", Reader.RAW)
        folders = [first, *(_directory(file, start[:4], at) for at in first.get(_SUB_IFDS, ())[:8])]
    except (OSError, struct.error, ValueError, OverflowError):
        folders = []
    if any(_SENSOR & set(folder.get(_PHOTOMETRIC, ())) for folder in folders):
        return named or Format("camera raw", Reader.RAW)
    return named or Format("TIFF", Reader.BASE)


def _directory(file: BinaryIO, start: bytes, at: int | None) -> dict[int, tuple[int, ...]]:
    """The integer tags of a TIFF directory (TIFF 6.0, section 2; BigTIFF), at most 512 of them."""
    order = "<" if start[:2] == b"II" else ">"
    big = 43 in start[2:4]
    count_type, word = ("Q", "Q") if big else ("H", "I")

    def unpack(kind: str, where: int) -> tuple[int, ...]:
        file.seek(where)
        layout = struct.Struct(order + kind)
        return layout.unpack(file.read(layout.size))

    if at is None:
        (at,) = unpack(word, 8 if big else 4)
    (count,) = unpack(count_type, at)
    at, tags = at + struct.calcsize("=" + count_type), dict[int, tuple[int, ...]]()
    for number in range(min(count, 512)):
        entry = at + number * (20 if big else 12)
        tag, kind = unpack("HH", entry)
        (length,) = unpack(word, entry + 4)
        if kind not in _TIFF_TYPES or not 0 < length <= 64:
            continue
        layout = f"{length}{_TIFF_TYPES[kind]}"
        where = entry + (12 if big else 8)
        if struct.calcsize("=" + layout) > (8 if big else 4):
            (where,) = unpack(word, where)
        tags[tag] = unpack(layout, where)
    return tags
