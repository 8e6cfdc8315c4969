"""Photographs: find, hash and decode them. No other module of the pipeline opens one."""

import hashlib
import itertools
import logging
import os
import posixpath
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field

from lasr.errors import UserError
from lasr.pictures.decoders.decode import Damaged
from lasr.pictures.find import FORMATS, expand_lists, find_files, is_picture_name
from lasr.pictures.read import RAISE_LIMIT, Picture, TooLarge, decode_picture, limited
from lasr.pictures.samples import LARGEST, NotSupported
from pipeline.storage import StoragePath, reason, reported

log = logging.getLogger(__name__)

# Raise it when usual files decode to other pixels than before. 0, its first value, adds nothing to
# the fingerprint: parts that were finished before it existed stay valid. docs/formats.md lists the
# unusual files that version 0.1.0 read otherwise.
VERSION = 0
MAX_PIXELS = 2**27  # 134 megapixels: bounds the memory for one photograph
MAX_BYTES = 2**30
_BACKDROP = 128  # grey behind transparent pixels: in the middle of the range


class ImagesConfig(BaseModel):
    """The parameters of this stage."""

    model_config = ConfigDict(frozen=True)

    images: list[str] = Field(
        min_length=1,
        description="photographs: folders (searched downwards), files, globs, .txt lists of paths",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=LARGEST,
        description="photographs with more pixels are left out; bounds memory",
    )


def limit_inputs(max_pixels: int) -> tuple[object, ...]:
    """What determines which photographs are left out as too large; nothing for the default."""
    return ("max_pixels", max_pixels) if max_pixels != MAX_PIXELS else ()


def fingerprint_inputs() -> tuple[object, ...]:
    """What determines the pixels of a photograph, besides its bytes."""
    return ("images", VERSION) if VERSION else ()


@dataclass(frozen=True, order=True)
class Found:
    """A file that may be a photograph, with what the file system says of it."""

    name: str  # POSIX path relative to the images root: the manifest's image_path
    path: StoragePath
    size: int  # bytes; -1: not a regular file
    modified: int  # nanoseconds


@dataclass(frozen=True)
class Photograph:
    """A decoded photograph: H x W x 3 uint8, sRGB, upright."""

    found: Found
    image_id: str  # sha256 of the file's bytes, hex
    pixels: np.ndarray


class Unusable(Exception):
    """Raised for a photograph that cannot be used, with status and reason for the catalogue."""

    def __init__(self, status: str, reason: str, image_id: str | None = None):
        super().__init__(reason)
        self.status, self.reason, self.image_id = status, reason, image_id


def find(images: Iterable[str]) -> list[Found]:
    """Find all photographs below the given paths, each once, sorted by name.

    images: folders, files, globs and `.txt` lists as `lasr.pictures.find.find_files` takes them, or
    folders and files in object storage (`s3://bucket/folder`).
    Names are relative to the deepest folder that contains them all.
    Raises UserError: a path does not exist, a folder cannot be listed, or nothing is found.
    """
    images = list(images)
    inputs = list(expand_lists(images))
    local = (_stat(path) for path, _ in find_files(given for given in inputs if "://" not in given))
    remote = (found for given in inputs if "://" in given for found in _in_object_storage(given))
    files: dict[str, Found] = {}
    for found in itertools.chain(local, remote):
        files.setdefault(found.path.uri, found)
    if not files:
        raise UserError(
            f"no photograph found in {', '.join(images)}",
            f"give a file, or a folder with files that end in {' '.join(sorted(FORMATS))}",
        )
    try:
        root = posixpath.commonpath([posixpath.dirname(uri) for uri in files])
    except ValueError as error:  # a local path and a URI
        raise UserError(
            f"{' '.join(images)}: folders on this machine and in object storage cannot"
            " share the names of one manifest",
            "build two manifests",
        ) from error
    return sorted(_named(found, root) for found in files.values())


def _named(found: Found, root: str) -> Found:
    # Linux allows names that are not UTF-8; the catalogue gets `\xff` spelt out.
    relative = posixpath.relpath(found.path.uri, root)
    name = os.fsencode(relative).decode("utf-8", "backslashreplace")
    return Found(name, found.path, found.size, found.modified)


def _stat(file: Path) -> Found:
    path = StoragePath(os.path.abspath(file))
    try:
        state = file.stat()
    except OSError:  # gone, or a dangling link: recorded as unreadable
        return Found("", path, 0, 0)
    # Reading a pipe or a device might never end.
    size = state.st_size if stat.S_ISREG(state.st_mode) else -1
    return Found("", path, size, state.st_mtime_ns)


def _in_object_storage(uri: str) -> list[Found]:
    path = StoragePath(uri.rstrip("/"))
    with reported(path, "read"):
        info = path.fs.get_file_info(path.key)
        if info.type == pafs.FileType.Directory:
            found = path.fs.get_file_info(pafs.FileSelector(path.key, recursive=True))
        else:
            found = [info]
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{uri}: no such folder or file", "check the address")
    scheme = uri.split("://", 1)[0]
    return [
        Found("", StoragePath(f"{scheme}://{file.path}"), file.size, file.mtime_ns or 0)
        for file in found
        if file.is_file and (is_picture_name(file.base_name) or file is info)
    ]


def load(found: Found, min_side: int, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Read a photograph: hash its bytes and decode them to upright 8-bit sRGB.

    16 bits are rounded to 8, grey becomes RGB, transparency is composited over mid grey. The first
    of several frames is used. Raises Unusable: too_small (below `min_side` pixels), too_large,
    unsupported, unreadable.
    """
    if found.size < 0:
        raise Unusable("unreadable", "not a regular file")
    limit = max(MAX_BYTES, 8 * max_pixels)
    if found.size > limit:
        raise Unusable("too_large", f"{found.size} bytes: over {limit}; {RAISE_LIMIT}")
    try:
        content = found.path.read_bytes()
    except OSError as error:
        raise Unusable("unreadable", f"cannot be read: {reason(error)}") from error
    image_id = hashlib.sha256(content).hexdigest()
    if not content:
        raise Unusable("unreadable", "the file is empty", image_id)
    picture = _decode(content, min_side, max_pixels, image_id)
    for note in picture.notes:
        log.warning("%s: %s", found.name, note)
    return Photograph(found, image_id, picture.over(_BACKDROP))


def _decode(content: bytes, min_side: int, max_pixels: int, image_id: str) -> Picture:
    within = limited(max_pixels)

    def check(width: int, height: int) -> None:
        within(width, height)
        if min(width, height) < min_side:
            why = f"{width}x{height}: a patch needs {min_side} pixels each way"
            raise Unusable("too_small", why, image_id)

    try:
        return decode_picture(content, check)
    except TooLarge as error:
        raise Unusable("too_large", f"{error}; {RAISE_LIMIT}", image_id) from error
    except NotSupported as error:
        raise Unusable("unsupported", str(error), image_id) from error
    except Damaged as error:
        raise Unusable("unreadable", str(error), image_id) from error
    except MemoryError as error:
        raise Unusable("too_large", "not enough memory to decode it", image_id) from error
