"""Files and folders on this machine or in object storage, behind one small interface.

Addresses such as `s3://bucket/name` are those of `lasr.storage.filesystem`. In object storage a
file appears when it is closed, so readers never see half a file; on local disks, atomic renames
give the same guarantee.
"""

import contextlib
import errno
import io
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lasr.errors import no_space, of_machine, one_line
from lasr.files import NAME_MAX, foreign, fsync_folder, remove, replace_file
from lasr.storage.filesystem import StorageError, reason, split
from lasr.system.calls import unnamed_file
from schemas.digest import BinaryFile, Damaged, parquet_digest

__all__ = [
    "StorageError", "StoragePath", "read_range", "read_table", "read_whole_table", "reason",
    "reported", "scratch",
]  # fmt: skip

_BLOCK = 1 << 22  # bytes per write of an upload


@dataclass(frozen=True, order=True)
class StoragePath:
    """A file or folder: a local path, or a URI such as `s3://bucket/folder/name`."""

    uri: str

    @property
    def is_local(self) -> bool:
        """Whether this is a path of the local file system."""
        return "://" not in self.uri

    @property
    def path(self) -> Path:
        """The local path."""
        return Path(self.uri)

    @property
    def name(self) -> str:
        """The last component."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> "StoragePath":
        """The folder that contains it."""
        return StoragePath(
            str(self.path.parent) if self.is_local else self.uri.rstrip("/").rsplit("/", 1)[0]
        )

    def __truediv__(self, name: str) -> "StoragePath":
        return StoragePath(
            str(self.path / name) if self.is_local else f"{self.uri.rstrip('/')}/{name}"
        )

    def __str__(self) -> str:
        return self.uri

    @property
    def fs(self) -> pafs.FileSystem:
        """The pyarrow file system that contains it."""
        if self.is_local:
            return _LOCAL
        return split(self.uri)[0]

    @property
    def key(self) -> str:
        """The path within `fs`."""
        return self.uri if self.is_local else self.uri.split("://", 1)[1]

    def exists(self) -> bool:
        """Whether the file or folder exists. Raises StorageError."""
        if self.is_local:
            return self.path.exists()
        with reported(self, "read"):
            return bool(self.fs.get_file_info(self.key).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; empty if it does not exist.

        Raises StorageError.
        """
        with reported(self, "read"):
            if self.is_local:
                return sorted(os.listdir(self.path)) if self.path.is_dir() else []
            selector = pafs.FileSelector(self.key, allow_not_found=True)
            return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def state(self) -> list[int]:
        """Size and modification time (ns) of a file. Raises OSError; Damaged: it is no file."""
        if self.is_local:
            found = self.path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise Damaged("it is no file")
            return [found.st_size, found.st_mtime_ns]
        info = self.fs.get_file_info(self.key)
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, "No such file", str(self))
        return [info.size, info.mtime_ns or 0]

    def open(self) -> contextlib.AbstractContextManager[BinaryFile]:
        """Open the file for reading. Raises OSError."""
        return open(self.path, "rb") if self.is_local else self.fs.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        """The content of the file. Raises OSError."""
        if self.is_local:
            return self.path.read_bytes()
        # A single request; `open_input_stream` would request 256 kB at a time.
        with self.fs.open_input_file(self.key) as file:
            content: bytes = file.read()
        return content

    def write_bytes(self, content: bytes) -> None:
        """Replace the file atomically: readers see the old content or the new.

        Calls no fsync: use it for content that can be computed again. Raises StorageError.
        """
        with reported(self, "written"):
            if not self.is_local:
                with self.fs.open_output_stream(self.key) as stream:
                    stream.write(content)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A unique name: two threads may write the same file (photographs of the same bytes).
            handle, temporary = tempfile.mkstemp(".tmp", ".", self.path.parent)
            try:
                with open(handle, "wb") as file:
                    file.write(content)
                os.replace(temporary, self.path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def take(self, temporary: Path, is_ours: "Callable[[StoragePath], bool] | None" = None) -> None:
        """Move a finished local file (see `scratch`) here, atomically and durably (fsync).

        is_ours: whether a file that is there already may be replaced (default: yes). Raises
        UserError: it may not; StorageError.
        """
        with reported(self, "written"):
            if is_ours and not self.is_local and self.exists() and not is_ours(self):
                raise foreign(self.uri)
            if self.is_local:
                with open(temporary, "r+b") as file:  # Windows syncs only what may be written
                    os.fsync(file.fileno())
                if is_ours:
                    replace_file(temporary, self.path, lambda path: is_ours(StoragePath(str(path))))
                else:
                    os.replace(temporary, self.path)
                fsync_folder(self.path.parent)
                return
            with open(temporary, "rb") as source, self.fs.open_output_stream(self.key) as stream:
                shutil.copyfileobj(source, stream, _BLOCK)

    def remove(self) -> None:
        """Delete the file or folder if it exists. Raises StorageError."""
        with reported(self, "removed"):
            if self.is_local:
                remove(self.path)
                return
            kind = self.fs.get_file_info(self.key).type
            if kind == pafs.FileType.Directory:
                self.fs.delete_dir(self.key)
            elif kind == pafs.FileType.File:
                self.fs.delete_file(self.key)


_LOCAL = pafs.LocalFileSystem()


def read_range(path: StoragePath, start: int, size: int) -> bytes:
    """Some bytes of a file, fewer where it ends before. Raises OSError."""
    if path.is_local:
        with open(path.path, "rb") as local:
            local.seek(start)
            return local.read(size)
    handler = getattr(path.fs, "handler", None)
    if isinstance(handler, pafs.FSSpecHandler):  # whose files would read ahead
        with handler.fs.open(path.key, "rb", cache_type="none") as file:
            file.seek(start)
            content: bytes = file.read(size)
        return content
    with path.fs.open_input_file(path.key) as remote:
        remote.seek(start)
        some: bytes = remote.read(size)
    return some


def read_table(path: StoragePath, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns. Raises OSError (also: a page has changed)."""
    return pq.read_table(
        path.key,
        columns=columns,
        filesystem=path.fs,
        partitioning=None,
        page_checksum_verification=True,
    )


def read_whole_table(path: StoragePath) -> tuple[pa.Table, str | None]:
    """Read a small Parquet file and check all of its bytes.

    Returns the table and the file's digest; None if it has none. Raises OSError, ArrowInvalid,
    Damaged.
    """
    with path.open() as file:
        content = file.read()
    if digest := parquet_digest(io.BytesIO(content)):
        digest.check(io.BytesIO(content))
    table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    return table, digest.content if digest else None


@contextlib.contextmanager
def scratch(folder: StoragePath, name: str) -> Iterator[Path]:
    """Yield a local path for a temporary file; `StoragePath.take` then moves it into `folder`.

    The file is deleted on exit. For a local folder it is created inside that folder, on the same
    disk. Its name ends in `.tmp`, because Parquet readers take every `*.parquet` for a part, and
    because a rerun after a kill finds and removes it by that suffix. The name is unique: on a
    shared disk two machines may work on one shard, if one was considered lost too early.
    For object storage the file has no name on Linux, so that nothing is left behind after a kill.
    """
    with reported(folder, "written"):
        if not folder.is_local:
            with unnamed_file() as path:
                yield path
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        unique = f"{uuid.uuid4().hex[:8]}.tmp"
        temporary = folder.path / f".{name}.{unique}"
        if len(os.fsencode(temporary.name)) > NAME_MAX:
            temporary = folder.path / f".{unique}"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reported(path: StoragePath, what: str) -> Iterator[None]:
    """Turn an OSError (disk full, permission, lost connection) into a StorageError.

    what: "read", "written" or "removed", for the message "PATH: cannot be WHAT".
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError):
            if path.is_local or not type(error).__module__.startswith("httpx"):
                raise
            error = OSError(one_line(error))  # huggingface_hub's, for a lost connection
        if path.is_local and no_space(error):
            full = of_machine(error, path.path)
            raise StorageError(full.problem, full.fix) from error
        fix = "fix it and run the same command again; finished parts are kept"
        if not path.is_local:
            fix = f"check the address, the credentials and the endpoint; {fix}"
        where = error.filename or path
        raise StorageError(f"{where}: cannot be {what} ({reason(error)})", fix) from error
