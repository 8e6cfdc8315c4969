"""Find the photographs of a build, on disks and in object storage, and give each a name."""

import io
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.fs as pafs

from lasr.errors import UserError
from lasr.pictures.find import search
from lasr.pictures.formats import by_suffix, is_hidden, readable_suffixes
from lasr.pictures.recognise import START, recognise
from lasr.pictures.search import HIDDEN, File, Input, Passed, expand, split_glob
from lasr.system.calls import as_slashes
from pipeline.storage import StoragePath, reported

State = list[int | str]
_THREADS = 16  # requests at once to object storage
KEEP = "keep the rows of its photographs with --keep-unreachable"


@dataclass(frozen=True, order=True)
class Found:
    """A file that may be a photograph, with what the file system says of it.

    identity: changes when the file is replaced, though name, size and time stay: inode and time of
    the last status change on a disk, ETag or version in object storage; empty where neither exists.
    """

    name: str  # POSIX path relative to the folder given: the manifest's image_path
    path: StoragePath
    size: int  # bytes; -1: not a regular file
    modified: int  # nanoseconds
    identity: str = ""

    @property
    def state(self) -> State:
        """What tells without reading it that a file is unchanged, and in the same folder."""
        return [self.size, self.modified, self.identity, str(self.path)]


@dataclass
class Photographs:
    """What `find_all` found.

    found: sorted by name. Folders are absolute paths or addresses: `unreachable` cannot be listed
    or do not exist, `hollow` have nothing in them, as a mount point without its disk.
    """

    found: list[Found] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed)
    unreachable: dict[str, str] = field(default_factory=dict)  # with the reason
    hollow: list[str] = field(default_factory=list)

    def check_any(self, images: Iterable[str]) -> None:
        """Raise UserError if no photograph was found."""
        if not self.found:
            raise UserError(
                f"no photograph found in {', '.join(images)}",
                f"give a file, or a folder with files that end in {' '.join(readable_suffixes())}",
            )

    def check_complete(self) -> None:
        """Raise UserError if an input, or a folder below one, cannot be reached."""
        for folder, reason in self.unreachable.items():
            others = len(self.unreachable) - 1
            more = f" (and {others} more)" if others else ""
            raise UserError(f"{folder}: {reason}{more}", f"check the path and its mount, or {KEEP}")


def find(images: Iterable[str]) -> list[Found]:
    """`find_all`, where everything must be reachable. Raises UserError."""
    photographs = find_all(images)
    photographs.check_complete()
    photographs.check_any(images)
    return photographs.found


def find_all(images: Iterable[str]) -> Photographs:
    """Find all photographs below the given paths, each once, sorted by name.

    images: folders, files, globs and `.txt` lists as `lasr.pictures.find.search` takes them, or
    folders and files in object storage (`s3://bucket/folder`).
    A name is the path relative to the folder that the user gave; see `_names`.
    Raises UserError: a list cannot be read.
    """
    inputs, result = list(expand(images)), Photographs()
    files = {found.path.uri: (found, root) for found, root in _on_disks(inputs, result)}
    for one in inputs:
        if "://" in one.given:
            for found, root in _in_object_storage(one.given, result):
                files.setdefault(found.path.uri, (found, root))
    names = _names((uri, root) for uri, (_, root) in files.items())
    result.found = sorted(replace(found, name=names[uri]) for uri, (found, _) in files.items())
    return result


def _names(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name each file, given by its address and that of its folder, in the order of the inputs.

    A name is the path relative to the folder. If an earlier input has that name, the name begins
    with as many of the folder's own components as are needed. So names do not depend on inputs that
    are added at the end, nor on files without a namesake.
    """
    names, taken = dict[str, str](), set[str]()
    for uri, root in files:
        # Linux allows names that are not UTF-8; the catalogue gets `\xff` spelt out.
        inner = posixpath.relpath(as_slashes(uri), as_slashes(root))
        relative = os.fsencode(inner).decode("utf-8", "backslashreplace")
        name, parents = relative, as_slashes(root).rstrip("/").split("/")
        while name in taken:
            above = parents.pop() if parents else "~"
            name = f"{os.fsencode(above).decode('utf-8', 'backslashreplace')}/{name}"
        taken.add(name)
        names[uri] = name
    return names


def _on_disks(inputs: Iterable[Input], result: Photographs) -> Iterator[tuple[Found, str]]:
    listing = search(one for one in inputs if "://" not in one.given)
    result.passed = listing.passed
    unreachable = {split_glob(str(path))[0]: reason for path, reason in listing.unreachable.items()}
    result.unreachable |= {os.path.abspath(path): why for path, why in unreachable.items()}
    occupied = {root: os.path.abspath(root) for root in {file.root for file in listing.files}}
    for file in listing.files:
        yield _stat(file), occupied[file.root]
    roots = {os.path.abspath(root) for root in listing.roots} - set(occupied.values())
    hollow = [os.path.abspath(path) for path in (*listing.empty, *listing.dangling)]
    result.hollow = list(dict.fromkeys([*sorted(roots), *hollow]))


def _stat(file: File) -> Found:
    path = StoragePath(os.path.abspath(file.path))
    try:
        state = file.path.stat()
    except OSError:  # gone, or a dangling link: recorded as unreadable
        return Found("", path, 0, 0)
    # Reading a pipe or a device might never end.
    size = state.st_size if stat.S_ISREG(state.st_mode) else -1
    # Not st_dev: it changes when a disk is mounted again.
    identity = f"{state.st_ino}-{state.st_ctime_ns}" if state.st_ino else ""
    return Found("", path, size, state.st_mtime_ns, identity)


def _in_object_storage(uri: str, result: Photographs) -> list[tuple[Found, str]]:
    path = StoragePath(uri.rstrip("/"))
    try:
        with reported(path, "read"):
            info = path.fs.get_file_info(path.key)
            if info.type == pafs.FileType.Directory:
                files = path.fs.get_file_info(pafs.FileSelector(path.key, recursive=True))
            else:
                files = [info]
            files = [file for file in files if file.is_file]
            with ThreadPoolExecutor(_THREADS) as executor:
                found = list(executor.map(lambda file: _examine(file, path, result), files))
    except UserError as error:
        result.unreachable[str(path)] = error.problem.removeprefix(f"{path}: ")
        return []
    if info.type == pafs.FileType.NotFound:
        result.unreachable[str(path)] = "no such folder or file"
    root = path if info.type == pafs.FileType.Directory else path.parent
    return [(one, str(root)) for one in found if one]


def _examine(file: pafs.FileInfo, top: StoragePath, result: Photographs) -> Found | None:
    """A file in object storage; None if it is passed over."""
    # Some of fsspec's file systems put a slash before the bucket.
    key = file.path if top.key.startswith("/") else file.path.lstrip("/")
    address = StoragePath(f"{top.uri.split('://', 1)[0]}://{key}")
    if below := key.removeprefix(top.key).strip("/"):  # the user did not name this file
        kind = by_suffix(file.base_name)
        if any(is_hidden(part) for part in below.split("/")):
            result.passed.add(HIDDEN, address)
            return None
        if kind is None:
            with top.fs.open_input_file(file.path) as stream:
                kind = recognise(io.BytesIO(stream.read(START)))
        if kind is None or not kind.is_picture:
            result.passed.add(Path(key).suffix.lower() or "without suffix", address)
            return None
    return Found("", address, file.size, file.mtime_ns or 0, _version(address))


def _version(path: StoragePath) -> str:
    """What fsspec's file systems list of a file's content: ETag, generation or inode.

    pyarrow's S3 lists no ETags. There a file counts as unchanged by address, size and time, which
    the server sets at each upload.
    """
    handler = getattr(path.fs, "handler", None)
    if not isinstance(handler, pafs.FSSpecHandler):
        return ""
    about = handler.fs.info(path.key)
    keys = ("etag", "ETag", "generation", "version_id", "md5", "ino", "created")
    return "-".join(str(about[key]) for key in keys if about.get(key))
