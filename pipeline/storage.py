"""Files and folders on this machine or in object storage, behind one small interface.

`s3://bucket/name` and `gs://…` go through pyarrow, other schemes through fsspec and its packages;
credentials, region and endpoint come from the usual variables (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, …). There a file appears whole when it is closed, so nothing half-written is ever
seen; on this machine lasr.files gives the same promise.
"""

import contextlib
import functools
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.files import fsync_folder, remove

_BLOCK = 1 << 22  # bytes sent at a time
# Seconds. The library gives up after three attempts; a copy inside the storage is silent meanwhile.
_CONNECT, _SILENCE = 5, 15


class StorageError(UserError):
    """A place that cannot be read or written; says which and why."""


@functools.lru_cache
def _file_system(scheme: str, bucket: str) -> pafs.FileSystem:
    address = f"{scheme}://{bucket}"
    try:
        if scheme == "s3":
            return _s3(bucket)
        if scheme in ("gs", "gcs"):
            return pafs.FileSystem.from_uri(address)[0]
        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme)))
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise StorageError(f"{address}: cannot be opened ({reason(error)})") from error


def _s3(bucket: str) -> pafs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    scheme, _, host = (endpoint or "https://").rpartition("://")
    if not (endpoint or region):
        region = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        scheme=scheme or "http",
        endpoint_override=host.rstrip("/") or None,
        region=region,
        connect_timeout=_CONNECT,
        request_timeout=_SILENCE,
        allow_delayed_open=True,  # a small file is one request, not three
    )


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
        """Whether there is a file or folder. Raises StorageError."""
        if self.is_local:
            return self.path.exists()
        with reported(self, "read"):
            return bool(self.fs.get_file_info(self.key).type != pafs.FileType.NotFound)

    def names(self) -> list[str]:
        """Names of the files and folders directly in it, sorted; none where it does not exist.

        Raises StorageError.
        """
        with reported(self, "read"):
            if self.is_local:
                return sorted(os.listdir(self.path)) if self.path.is_dir() else []
            selector = pafs.FileSelector(self.key, allow_not_found=True)
            return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read_bytes(self) -> bytes:
        """Everything in the file. Raises OSError."""
        if self.is_local:
            return self.path.read_bytes()
        # One request for all of it; `open_input_stream` would ask for 256 kB at a time.
        with self.fs.open_input_file(self.key) as file:
            content: bytes = file.read()
        return content

    def write_bytes(self, content: bytes) -> None:
        """Replace the file; a reader sees the old one or the new one.

        Not made durable (fsync): for what can be made again. Raises StorageError.
        """
        with reported(self, "written"):
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
        with reported(self, "written"):
            if self.is_local:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
                fsync_folder(self.path.parent)
                return
            with open(temporary, "rb") as source, self.fs.open_output_stream(self.key) as stream:
                shutil.copyfileobj(source, stream, _BLOCK)

    def remove(self) -> None:
        """Delete the file or folder; nothing happens where there is none. Raises StorageError."""
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


def read_table(place: Place, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns. Raises OSError, ArrowInvalid."""
    return pq.read_table(place.key, columns=columns, filesystem=place.fs, partitioning=None)


@contextlib.contextmanager
def scratch(folder: Place, name: str) -> Iterator[Path]:
    """A local path to write a file at that `Place.take` will move into `folder`; gone afterwards.

    In a local folder it stands beside its goal, on the same disk, and ends in `.tmp`: Parquet
    readers take every `*.parquet` for a part, and a rerun after a kill finds and removes it. On a
    shared disk two machines may be at one shard, when one of them was given up too early: each
    writes to a name of its own. For object storage the file has no name that could stay behind.
    """
    with reported(folder, "written"):
        if not folder.is_local:
            with tempfile.TemporaryFile() as file:
                yield Path(f"/proc/self/fd/{file.fileno()}")
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        temporary = folder.path / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def reported(place: Place, what: str) -> Iterator[None]:
    """A full disk, a missing right or a lost connection as a StorageError: "cannot be `what`"."""
    try:
        yield
    except OSError as error:
        advice = "mend it and run the same command again"
        if not place.is_local:
            advice = f"check the address, the credentials and the endpoint, {advice}"
        where = error.filename or place
        raise StorageError(
            f"{where}: cannot be {what} ({reason(error)}); nothing finished is lost: {advice}"
        ) from error


def reason(error: Exception) -> str:
    """What went wrong, without the library's preamble and request numbers."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return re.sub(r"^.*?AWS Error |\s*\(Request ID: .*\)", "", text)
