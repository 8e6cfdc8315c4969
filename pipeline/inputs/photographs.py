"""Find the photographs of a build and give each a name.

They are files on disks or in object storage, or inside archives (`pipeline.inputs.archives`).
"""

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from lasr.errors import UserError
from lasr.pictures.find import search
from lasr.pictures.formats import readable_suffixes
from lasr.pictures.search import File, Input, Passed, expand, split_glob
from lasr.system.calls import as_slashes
from pipeline.inputs.archives import Member, is_archive, members, read_member, refuse_compressed
from pipeline.inputs.remote import list_remote
from pipeline.storage import StorageError, StoragePath

State = list[int | str]
KEEP = "keep the rows of its photographs with --keep-unreachable"


@dataclass(frozen=True, order=True)
class Found:
    """A file, or a file in an archive, that may be a photograph, with what the file system says.

    identity: changes when the file is replaced, though name, size and time stay: inode and time of
    the last status change on a disk, ETag or version in object storage; empty where neither exists.
    modified, identity and path are those of the archive where there is a `member`.
    """

    name: str  # POSIX path relative to the folder given: the manifest's image_path
    path: StoragePath
    size: int  # bytes; -1: not a regular file; 0 in a Parquet file: unknown until it is read
    modified: int  # nanoseconds
    identity: str = ""
    member: Member | None = None

    @property
    def address(self) -> str:
        """Where it is; that of a file in an archive looks as if the archive was a folder."""
        return f"{self.path}/{self.member.name}" if self.member else str(self.path)

    @property
    def state(self) -> State:
        """What tells without reading it that a file is unchanged, and in the same folder."""
        at = f"@{self.member.at}" if self.member else ""
        return [self.size, self.modified, f"{self.identity}{at}", self.address]

    def read_bytes(self) -> bytes:
        """Its content. Raises OSError."""
        if self.member:
            return read_member(self.path, self.member, self.size, self.modified)
        return self.path.read_bytes()


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
    folders, files and globs in object storage (`s3://bucket/folder`) and on the Hugging Face Hub
    (`hf://datasets/owner/name`). Archives are opened if the user names them, or if they are on the
    Hub.
    A name is the path relative to the folder that the user gave; see `_names`.
    Raises UserError: a list cannot be read, a compressed archive, a manifest of patches.
    """
    inputs, result = list(expand(images)), Photographs()
    files = {found.address: (found, root) for found, root in _on_disks(inputs, result)}
    for one in inputs:
        if "://" in one.given:
            for found, root in _in_object_storage(one.given, result):
                files.setdefault(found.address, (found, root))
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
        found = _stat(file)
        if file.is_named:
            refuse_compressed(found.path.uri)
        if file.is_named and found.size > 0 and is_archive(found.path.name):
            yield from ((one, occupied[file.root]) for one in _inside(found, result))
        else:
            yield found, occupied[file.root]
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


def _in_object_storage(uri: str, result: Photographs) -> Iterator[tuple[Found, str]]:
    remote = list_remote(uri, result.passed)
    if isinstance(remote, str):
        result.unreachable[uri] = remote
        return
    for file in remote.files:
        found = Found("", file.path, file.size, file.modified, file.identity)
        if file.is_archive:
            yield from ((one, remote.root) for one in _inside(found, result))
        else:
            yield found, remote.root


def _inside(archive: Found, result: Photographs) -> list[Found]:
    """The photographs in an archive; none if it cannot be read, which is noted."""
    try:
        inside = members(archive.path, result.passed)
    except StorageError as error:
        result.unreachable[str(archive.path)] = error.problem.removeprefix(f"{archive.path}: ")
        return []
    return [replace(archive, size=size, member=member) for member, size in inside]
