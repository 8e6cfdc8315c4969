"""List files that may be photographs, or archives of them, in object storage and on the Hub."""

import functools
import glob
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from lasr.errors import UserError
from lasr.pictures.formats import by_suffix, is_hidden
from lasr.pictures.recognise import START, recognise
from lasr.pictures.search import HIDDEN, Passed
from lasr.storage.filesystem import trimmed
from pipeline.inputs.archives import is_archive, refuse_compressed
from pipeline.storage import StoragePath, reported

_THREADS = 16  # requests at once
_HUB = "hf://"


@dataclass(frozen=True)
class RemoteFile:
    """A file that may be a photograph, or an archive; `Found` describes the fields."""

    path: StoragePath
    size: int
    modified: int
    identity: str
    is_archive: bool


@dataclass(frozen=True)
class Remote:
    """Files below an address, and the folder that their names are relative to."""

    files: Sequence[RemoteFile]
    root: str


def list_remote(uri: str, passed: Passed) -> Remote | str:
    """Find files below an address: a folder, a file, or a glob. Files that are none are counted.

    Archives are taken where the address names them, by itself or by a glob with a suffix, and
    everywhere on the Hub, whose data sets consist of them. Returns the reason if the address cannot
    be reached. Raises UserError: a compressed archive is named.
    """
    refuse_compressed(uri)
    path, pattern = _split(trimmed(uri))
    named = pattern is not None and "." in PurePosixPath(uri).name
    try:
        with reported(path, "read"):
            info = path.fs.get_file_info(path.key)
            if info.type == pafs.FileType.Directory:
                files = path.fs.get_file_info(pafs.FileSelector(path.key, recursive=True))
            else:
                files = [info]
            files = [file for file in files if file.is_file]
            if pattern:
                files = [file for file in files if pattern.fullmatch(file.path.lstrip("/"))]
            examine = functools.partial(_examine, top=path, passed=passed, is_named=named)
            with ThreadPoolExecutor(_THREADS) as executor:
                found = [one for one in executor.map(examine, files) if one]
    except UserError as error:
        return error.problem.removeprefix(f"{path}: ")
    if info.type == pafs.FileType.NotFound or (pattern and not files):
        return "no such folder or file"
    return Remote(found, str(path if info.type == pafs.FileType.Directory else path.parent))


def _split(uri: str) -> tuple[StoragePath, re.Pattern[str] | None]:
    """The folder before the first wildcard, and a pattern for keys; None without a wildcard."""
    scheme, _, key = uri.partition("://")
    first = next((at for at, part in enumerate(key.split("/")) if glob.has_magic(part)), None)
    if not first:  # a wildcard for buckets is none
        return StoragePath(uri), None
    folder = "/".join(key.split("/")[:first])
    wildcards = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*|\?|\[[^/\]]+\])", key)
    text = "".join(
        wildcards.get(part, part if part.startswith("[") and number % 2 else re.escape(part))
        for number, part in enumerate(parts)
    )
    return StoragePath(f"{scheme}://{folder}"), re.compile(text)


def _examine(
    file: pafs.FileInfo, top: StoragePath, passed: Passed, is_named: bool
) -> RemoteFile | None:
    """A file below `top`; None if it is passed over."""
    # Some of fsspec's file systems put a slash before the bucket.
    key = file.path if top.key.startswith("/") else file.path.lstrip("/")
    scheme = top.uri.split("://", 1)[0]
    address = StoragePath(f"{scheme}://{key}")
    below = key.removeprefix(top.key).strip("/")  # nothing: the user named this file
    archive = is_archive(key) and (is_named or not below or top.uri.startswith(_HUB))
    if below and any(is_hidden(part) for part in below.split("/")):
        passed.add(HIDDEN, address)
        return None
    if below and not archive and not _may_be_picture(file, top):
        passed.add(PurePosixPath(key).suffix.lower() or "without suffix", address)
        return None
    return RemoteFile(address, file.size, file.mtime_ns or 0, _version(address), archive)


def _may_be_picture(file: pafs.FileInfo, top: StoragePath) -> bool:
    kind = by_suffix(file.base_name)
    if kind is None:
        with top.fs.open_input_file(file.path) as stream:
            kind = recognise(io.BytesIO(stream.read(START)))
    return kind is not None and kind.is_picture


def _version(path: StoragePath) -> str:
    """What fsspec's file systems list of a file's content: ETag, generation, digest or inode.

    pyarrow's S3 lists no ETags. There a file counts as unchanged by address, size and time, which
    the server sets at each upload.
    """
    handler = getattr(path.fs, "handler", None)
    if not isinstance(handler, pafs.FSSpecHandler):
        return ""
    about = handler.fs.info(path.key)
    keys = ("etag", "ETag", "generation", "version_id", "md5", "blob_id", "ino", "created")
    return "-".join(str(about[key]) for key in keys if about.get(key))
