"""Files and folders on this machine or in object storage, behind one small interface.

`s3://bucket/name` and the other schemes that pyarrow knows are object storage; credentials, region
and endpoint come from the usual variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). There a file
appears whole when it is closed, so nothing half-written is ever seen; on this machine schemas.files
gives the same promise.
"""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from schemas.errors import UserError
from schemas.files import fsync_folder, remove

_BLOCK = 1 << 22  # bytes sent at a time


class StorageError(UserError):
    """A place that cannot be read or written; says which and why."""


@functools.lru_cache
def _file_system(scheme: str, bucket: str) -> pafs.FileSystem:
    try:
        return pafs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"{scheme}://{bucket}: cannot be opened ({error})") from error


@dataclass(frozen=True, order=True)
class Place:
    """A file or folder: a local path, or an address such as `s3://bucket/folder/name`."""

    uri: str

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return "://" not in self.uri

    @property
    def path(self) -> Path:
        """The local path."""
        return Path(self.uri)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Place":
        """The folder that holds it."""
        return Place(str(self.path.parent) if self.is_local else self.uri.rsplit("/", 1)[0])

    def __truediv__(self, name: str) -> "Place":
        return Place(str(self.path / name) if self.is_local else f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def fs(self) -> pafs.FileSystem:
        """pyarrow's file system that holds it."""
        if self.is_local:
            return _LOCAL
        scheme, rest = self.uri.split("://", 1)
        return _file_system(scheme, rest.split("/", 1)[0])

    @property
    def key(self) -> str:
        """Its path within `fs`."""
        return self.uri if self.is_local else self.uri.split("://", 1)[1]

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        if self.is_local:
            return self.path.exists()
        return bool(self.fs.get_file_info(self.key).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders directly in it, sorted; none where it does not exist."""
        if self.is_local:
            return sorted(os.listdir(self.path)) if self.path.is_dir() else []
        selector = pafs.FileSelector(self.key, allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read_bytes(self) -> bytes:
        """Everything in the file. Raises OSError."""
        if self.is_local:
            return self.path.read_bytes()
        with self.fs.open_input_stream(self.key) as stream:
            content: bytes = stream.read()
        return content

    def write_bytes(self, content: bytes) -> None:
        """Replace the file; a reader sees the old one or the new one.

        Not made durable (fsync): for what can be made again. Raises StorageError.
        """
        with reported(self):
            if not self.is_local:
                with self.fs.open_output_stream(self.key) as stream:
                    stream.write(content)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Two threads may hold photographs of the same bytes, hence a name of its own.
            handle, temporary = tempfile.mkstemp(".tmp", ".", self.path.parent)
            try:
                with open(handle, "wb") as file:
                    file.write(content)
                os.replace(temporary, self.path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def take(self, temporary: Path) -> None:
        """Let a finished local file (see `scratch`) become this one, durably and in one step."""
        with reported(self):
            if self.is_local:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
                fsync_folder(self.path.parent)
                return
            with open(temporary, "rb") as source, self.fs.open_output_stream(self.key) as stream:
                shutil.copyfileobj(source, stream, _BLOCK)

    def remove(self) -> None:
        """Delete the file or folder; nothing happens where there is none."""
        if self.is_local:
            remove(self.path)
            return
        kind = self.fs.get_file_info(self.key).type
        if kind == pafs.FileType.Directory:
            self.fs.delete_dir(self.key)
        elif kind == pafs.FileType.File:
            self.fs.delete_file(self.key)


_LOCAL = pafs.LocalFileSystem()


@contextlib.contextmanager
def scratch(folder: Place, name: str) -> Iterator[Path]:
    """A local path to write a file at that `Place.take` will move into `folder`; gone afterwards.

    In a local folder it stands beside its goal, on the same disk, as `.NAME.tmp`: Parquet readers
    take every `*.parquet` for a part, and a rerun after a kill finds and removes it by its ending.
    """
    with reported(folder):
        if folder.is_local:
            folder.path.mkdir(parents=True, exist_ok=True)
            temporary = folder.path / f".{name}.tmp"
        else:
            temporary = Path(tempfile.mkdtemp(prefix="la-sr-")) / name
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            if not folder.is_local:
                temporary.parent.rmdir()


@contextlib.contextmanager
def reported(place: Place) -> Iterator[None]:
    """A full disk, a missing right or a lost connection in one line instead of a traceback."""
    try:
        yield
    except OSError as error:
        where = error.filename or place
        raise StorageError(
            f"{where}: cannot be written ({error.strerror or error}); nothing finished is lost:"
            " mend it and run the same command again"
        ) from error
