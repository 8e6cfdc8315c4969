"""The formats of pictures and of other files by suffix, and what reads them: the base or an extra.

A format that is known and not read has a name here, so that no picture is passed over unnamed.
"""

import functools
import importlib.util
from dataclasses import dataclass
from enum import Enum


class Reader(Enum):
    """What reads a format."""

    BASE = "base"  # Pillow, OpenCV, tifffile, imagecodecs
    HEIF = "pillow-heif"  # extra `heif`
    RAW = "rawpy"  # extra `raw`
    NONE = "nothing"  # a picture in a format that is not read
    NO_PICTURE = "no picture"


@dataclass(frozen=True)
class Format:
    """A file format: its name, and what reads it."""

    name: str
    reader: Reader

    @property
    def is_picture(self) -> bool:
        return self.reader is not Reader.NO_PICTURE


def _table(reader: Reader, lines: str) -> dict[str, Format]:
    """Parse lines of `name: suffixes`."""
    parsed = (line.strip().split(": ") for line in lines.strip().splitlines())
    return {
        f".{suffix}": Format(name, reader)
        for name, suffixes in parsed
        for suffix in suffixes.split()
    }


PICTURES = {
    **_table(
        Reader.BASE,
        """
        JPEG: jpg jpeg jpe jfif jfi jif pjpeg pjp mpo
        PNG: png apng
        WebP: webp
        TIFF: tif tiff
        BMP: bmp dib
        GIF: gif
        AVIF: avif avifs
        JPEG 2000: jp2 j2k jpf jpx j2c jpc
        PNM: ppm pgm pbm pnm pfm
        """,
    ),
    **_table(Reader.HEIF, "HEIC: heic heics hif\nHEIF: heif heifs"),
    **_table(
        Reader.RAW,
        """
        DNG: dng
        CR2: cr2
        CR3: cr3
        CRW: crw
        NEF: nef nrw
        ARW: arw srf sr2
        RAF: raf
        ORF: orf ori
        RW2: rw2 rwl
        PEF: pef
        SRW: srw
        X3F: x3f
        camera raw: raw 3fr fff iiq erf mef mos mrw dcr kdc k25 gpr
        """,
    ),
    **_table(
        Reader.NONE,
        """
        JPEG XL: jxl
        JPEG XR: jxr wdp hdp
        Photoshop: psd psb
        GIMP: xcf
        Krita: kra
        OpenRaster: ora
        Affinity Photo: afphoto
        SVG: svg svgz
        PostScript: eps ps
        OpenEXR: exr
        Radiance HDR: hdr rgbe
        FITS: fits fit fts
        DICOM: dcm dicom
        Photo CD: pcd
        BPG: bpg
        FLIF: flif
        DDS: dds
        TGA: tga
        QOI: qoi
        PCX: pcx
        SGI: sgi
        PAM: pam
        farbfeld: ff
        MNG: mng jng
        X bitmap: xbm xpm
        Sun raster: ras
        """,
    ),
}
# Files with these suffixes are counted and not opened: data sets have several for each picture.
_NO_PICTURES = _table(
    Reader.NO_PICTURE,
    """
    video: mp4 mov m4v avi mkv webm mts m2ts 3gp 3g2 wmv flv mpg mpeg vob ogv insv lrv
    sound: mp3 wav m4a aac flac ogg opus wma aif aiff amr
    document: txt md rst pdf doc docx odt xls xlsx ods ppt pptx odp rtf tex htm html xhtml epub djvu
    data: csv tsv json jsonl xml yaml yml toml ini cfg conf log sql db sqlite sqlite3 parquet arrow
    array: npy npz h5 hdf5 mat pkl pickle pt pth ckpt safetensors onnx
    sidecar: xmp aae pp3 dop on1 cos thm ctg lrcat lrprev sha256 sha1 md5
    archive: zip tar gz tgz bz2 tbz xz txz 7z rar zst lz4 iso dmg
    program: py pyc ipynb js ts css c h cc cpp hpp sh bat exe dll so java go rs php rb pl lua jar
    font: ttf otf woff woff2
    icon: ico icns cur
    model: obj mtl stl ply glb gltf fbx blend
    link: lnk url webloc
    """,
)
_BY_SUFFIX = PICTURES | _NO_PICTURES
# fmt: off
_LITTER = frozenset([  # of operating systems, archives and network drives; compared in lower case
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle",
    "#snapshot", "$recycle.bin", "system volume information", "lost+found",
])
# fmt: on


def by_suffix(name: str) -> Format | None:
    """The format that a file's suffix promises; None: no suffix, or an unknown one."""
    stem, _, suffix = name.rpartition(".")
    return _BY_SUFFIX.get(f".{suffix.lower()}") if stem else None


def readable_suffixes() -> list[str]:
    """The suffixes of formats that need no extra, sorted."""
    return sorted(suffix for suffix, one in PICTURES.items() if one.reader is Reader.BASE)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or an operating system made it, as `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _LITTER


_EXTRAS = {Reader.HEIF: ("heif", "pillow_heif"), Reader.RAW: ("raw", "rawpy")}


@functools.cache
def installed_extras() -> tuple[str, ...]:
    """The names of the installed extras that read further formats, sorted."""
    found = (extra for extra, module in _EXTRAS.values() if importlib.util.find_spec(module))
    return tuple(sorted(found))


def why_not_read(kind: Format, name: str = "") -> str:
    """Why a format is not read here; empty if it is.

    name: the file's; where its suffix promises another format, the text says so.
    """
    promised = by_suffix(name)
    differs = promised is not None and promised.is_picture and promised.name != kind.name
    other = f", though its name ends as that of {promised.name}" if promised and differs else ""
    if not kind.is_picture:
        return f"not a picture but {kind.name}{other}"
    if kind.reader is Reader.NONE:
        return f"{kind.name} is not read{other}"
    if kind.reader in _EXTRAS and (extra := _EXTRAS[kind.reader][0]) not in installed_extras():
        return f"{kind.name} needs `pip install 'la-sr[{extra}]'`{other}"
    return ""
