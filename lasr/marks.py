"""The mark inside every file that this project writes, by which a later run knows its own.

    Parquet, safetensors, ONNX   metadata with the key `la-sr`
    .pth                         a key `la-sr` beside the weights
    PNG, JPEG, WebP, TIFF        the tag Software begins with "LA-SR"
    tar                          the comment that it begins with
    HTML, Markdown               the last line: a comment with a digest of the lines above it, so
                                 that an edited page belongs to whoever edited it
    JSON, lines of JSON          a key `la-sr`, or the keys of that kind of file
    CSV                          the columns of that kind of table (CSV has no comments)
    NCNN                         the name of the first layer of `.param`, and in it a digest of the
                                 `.bin`

Files of version 0.1.0 had no mark in some of these; what they hold is recognised instead.
"""

import contextlib
import csv
import hashlib
import io
import json
import re
import struct
import warnings
import zipfile
from typing import Any, BinaryIO

import lasr

KEY = "la-sr"
SOFTWARE = f"LA-SR {lasr.__version__}"  # of pictures, where nothing more is known
TAR_COMMENT = f"{KEY} shard"  # followed by the version
_LARGEST_TEXT = 1 << 28  # bytes; a report has 8 MB
_TAIL = 1 << 16  # bytes; ONNX ends with its metadata
_COMMENT = re.compile(rf"<!-- {KEY} ([0-9a-f]{{16}})\b[^\n]*-->\n")
_OLD_TEXTS = (  # of version 0.1.0
    re.compile(r"---\n.*?\n# LA-SR patches: ", re.DOTALL),
    re.compile(r"# [^\n]*: a training run of LA-SR\n"),
    re.compile(
        r"\s*<!doctype html>.{0,600}script-src 'sha256-.{0,600}<title>Far and near: ", re.DOTALL
    ),
    re.compile(r"\| Method .*\| Params \(M\) \|"),
)
_JSON_KEYS = (
    {"manifest_identity", "weights"},  # config.json of a run
    {"images_identity", "weights"},  # that of pretraining
    {"step", "numbers", "patches"},  # nonfinite.json
    {"host", "pid", "since"},  # a lock's holder
    {"view", "stage", "agreement", "chance", "silhouette", "sentence"},  # scores.json of features
    {"key", "score", "device"},  # scores.jsonl of an evaluation
    {"key", "output", "seconds", "parameters", "device"},  # made.jsonl of its pictures
)
_COLUMNS = (
    ("method", "image", "metric", "title", "higher_is_better", "score"),  # scores
    ("method", "metric", "mean", "images", "higher_is_better"),  # means
    ("method", "step", "metric", "mean", "images"),  # a curve
    ("patch_id", "role", "view", "label", "stage", "x", "y"),  # coordinates of features
)
_PARAM = re.compile(rb"7767517\n\d+ \d+\nInput +(?:la-sr-([0-9a-f]{16})|input0) 0 1 data\n")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def has_mark(file: BinaryIO) -> bool:
    """Whether this project wrote an open file, by its content. Its position may change.

    False for a file that cannot be read as what it seems to be. Raises OSError.
    """
    head = file.read(4096)
    file.seek(0)
    try:
        if head.startswith(b"PAR1"):
            return _parquet(file)
        if head.startswith(_PICTURES):
            return _picture(file)
        if head.startswith(b"PK\x03\x04"):
            return _zip(file)
        if head.startswith(b"7767517\n"):
            return _PARAM.match(head) is not None
        if head[257:262] == b"ustar":
            return _tar(head)
        if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < _LARGEST_TEXT:
            return _safetensors(file)
        if head[:1] == b"\x08":
            return _onnx(file)
        return _json(file, head) if head[:1] in (b"{", b"[") else _text(file)
    except Exception:  # readers raise nearly anything on damaged and hostile files
        return False


def signed(text: str) -> str:
    """A page in HTML or Markdown with its mark: a comment as last line."""
    text = text if text.endswith("\n") else text + "\n"
    digest = _digest(text.encode())
    return f"{text}<!-- {KEY} {digest}: the next run replaces this page unless it was edited -->\n"


def in_picture() -> dict[str, Any]:
    """The mark as a keyword argument of Pillow's `Image.save`, for PNG, JPEG and WebP."""
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    return {"exif": exif.tobytes()}


def param_layer(binary: bytes) -> str:
    """The name of the first layer of a `.param`, for the `.bin` beside it."""
    return f"{KEY}-{_digest(binary)}"


def param_owns(param: bytes, binary: bytes) -> bool:
    """Whether the `.param` of this project was written with these bytes of a `.bin`."""
    found = _PARAM.match(param)
    return found is not None and found[1] in (None, _digest(binary).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _parquet(file: BinaryIO) -> bool:
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    return KEY.encode() in (schema.metadata or {}) or _is_table(schema.names)


def _is_table(names: list[str]) -> bool:
    return any(tuple(names[: len(columns)]) == columns for columns in _COLUMNS)


def _picture(file: BinaryIO) -> bool:
    from lasr.pictures.exif import software_tag

    with warnings.catch_warnings(action="ignore"):
        return str(software_tag(file)).startswith("LA-SR")


def _zip(file: BinaryIO) -> bool:
    """A file of PyTorch: its pickle is searched, not run."""
    with zipfile.ZipFile(file) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _LARGEST_TEXT:
            return False
        return b"\x05\0\0\0la-sr" in archive.read(pickles[0])  # a short string: length, text


def _tar(head: bytes) -> bool:
    """The global header of POSIX's pax format, which programs pass over."""
    return head[156:157] == b"g" and f" comment={TAR_COMMENT} ".encode() in head[512:1024]


def _safetensors(file: BinaryIO) -> bool:
    size = struct.unpack("<Q", file.read(8))[0]
    about = json.loads(file.read(size)).get("__metadata__", {})
    return KEY in about or {"scale", "colour", "range", "source"} <= about.keys()


def _onnx(file: BinaryIO) -> bool:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    return _string(KEY) in tail or all(
        _string(key) in tail for key in ("colour", "range", "source")
    )


def _string(text: str) -> bytes:
    """A string in protobuf, as the key of an entry: field number, length, bytes."""
    return bytes([0x0A, len(text)]) + text.encode()


def _text(file: BinaryIO) -> bool:
    text = file.read(_LARGEST_TEXT).decode("utf-8")
    if _is_table(next(csv.reader([text.partition("\n")[0]]), [])):
        return True
    comments = list(_COMMENT.finditer(text))
    if comments:
        last = comments[-1]
        return last.end() == len(text) and last[1] == _digest(text[: last.start()].encode())
    return any(old.match(text) for old in _OLD_TEXTS)


def _json(file: BinaryIO, head: bytes) -> bool:
    lines = head.splitlines(keepends=True)
    with contextlib.suppress(ValueError):  # lines of JSON, of which the first tells
        if lines[0].endswith(b"\n"):
            return _is_json(json.loads(lines[0]))
    if len(lines) == 1 and len(head) < 4096 and head.startswith((b'{"key": ', b'{"host": ')):
        with contextlib.suppress(ValueError):
            return _is_json(json.loads(head))
        return True  # a line that a kill cut short
    return _is_json(json.loads(file.read(_LARGEST_TEXT)))


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, dict) and _is_json(each) for each in value)
    return isinstance(value, dict) and (KEY in value or any(k <= value.keys() for k in _JSON_KEYS))
