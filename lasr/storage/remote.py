"""A Parquet file in storage, read by ranges of bytes through the cache.

The end of the file, with the footer, is fetched once and stays in memory. Columns and row groups
are fetched as they are asked for: each is one range, or a few, and goes to the cache under a name
that says which bytes of which content they are. So a row group is the same entry for every address
that the file has ever had, and never one of another file.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lasr.storage.cache import RangeCache
from lasr.storage.ranges import Range, column_ranges, fetch_tail, joined
from lasr.storage.retry import Patience
from schemas.digest import Damaged, ParquetDigest, parquet_digest

_GAP = 1 << 16  # unused bytes between two ranges that cost less than another request
_BLOCK = 1 << 23  # bytes per request where a file is read from the start to the end


@dataclass
class Traffic:
    """What was asked of storage by this process. Thread-safe."""

    requests: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, size: int) -> None:
        """Count one request that was answered with `size` bytes."""
        with self._lock:
            self.requests += 1
            self.bytes += size


@dataclass(frozen=True)
class Access:
    """How files in storage are read."""

    cache: RangeCache
    patience: Patience = field(default_factory=Patience)
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(frozen=True, eq=False)
class StoredFile:
    """A Parquet file in storage: a `schemas.parts.RemoteFile`. Its methods raise StorageError.

    modified: by the storage's clock, ns; 0 where it does not say.
    """

    address: str
    fs: pafs.FileSystem
    key: str
    size: int
    modified: int
    access: Access

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """The last component of the address."""
        return self.address.rstrip("/").rsplit("/", 1)[-1]

    def open(self, ranges: Sequence[tuple[int, bytes]] = (), block: int = 0) -> "RangeReader":
        """Open it for reading. ranges: bytes that are here already. block: least bytes to fetch."""
        return RangeReader(self, [*ranges, self.tail], block)

    def read(self, start: int, stop: int) -> bytes:
        """Fetch bytes, which are not cached."""

        def fetch() -> bytes:
            content = self._read_at(start, stop - start)
            if len(content) < stop - start:
                raise OSError(f"{len(content)} bytes came, not {stop - start}")
            return content

        content = self.access.patience.keep_trying(self, fetch)
        self.access.traffic.add(len(content))
        return content

    def _bytes(self, start: int, stop: int) -> bytes:
        first, end = self.tail
        return end[start - first : stop - first] if start >= first else self.read(start, stop)

    @cached_property
    def _read_at(self) -> Callable[[int, int], bytes]:
        handler = getattr(self.fs, "handler", None)
        if isinstance(handler, pafs.FSSpecHandler):

            def by_fsspec(start: int, size: int) -> bytes:
                # Without its cache: it would read ahead.
                with handler.fs.open(self.key, "rb", cache_type="none") as file:
                    file.seek(start)
                    content: bytes = file.read(size)
                return content

            return by_fsspec
        opened: list[Any] = []

        def by_pyarrow(start: int, size: int) -> bytes:
            # Opened once: that is a request of its own.
            if not opened:
                opened.append(self.fs.open_input_file(self.key))
            content: bytes = opened[0].read_at(size, start)
            return content

        return by_pyarrow

    @cached_property
    def tail(self) -> tuple[int, bytes]:
        """The end of the file with the whole footer, and the number of its first byte."""
        return fetch_tail(self.size, self.read)

    @cached_property
    def identity(self) -> str:
        """Other bytes, other identity. Files without digests are known by address and time, too."""
        _, end = self.tail
        footer = 8 + int.from_bytes(end[-8:-4], "little")
        digest = hashlib.sha256(end[-footer:])
        with self.open() as file:
            try:
                has_digests = parquet_digest(file) is not None
            except Damaged:
                has_digests = False
        if not has_digests:
            digest.update(f"{self.address} {self.size} {self.modified}".encode())
        return digest.hexdigest()

    def sha256(self) -> str:
        """64 hex digits of all its bytes, which are read once: the cache keeps the result."""

        def read_all() -> bytes:
            digest = hashlib.sha256()
            for start in range(0, self.size, _BLOCK):
                digest.update(self.read(start, min(start + _BLOCK, self.size)))
            return digest.hexdigest().encode()

        return self.access.cache.get(f"{self.identity} sha256", read_all).decode()

    def stream(self) -> "RangeReader":
        """Open it to be read from the start to the end, in large requests that are not cached."""
        return self.open(block=_BLOCK)

    def columns(
        self, footer: pq.FileMetaData, names: Iterable[str], groups: Iterable[int] | None = None
    ) -> "RangeReader":
        """Open it with columns of some row groups (default: all) fetched."""
        return self._with(joined(column_ranges(footer, names, groups), _GAP))

    def row_group(
        self,
        footer: pq.FileMetaData,
        digest: ParquetDigest | None,
        index: int,
        names: Iterable[str],
        again: bool = False,
    ) -> "RangeReader":
        """Open it with a row group fetched: the whole group if it has a digest, else columns of it.

        again: what is cached is fetched again. Raises Damaged: the bytes have another digest.
        """
        ranges, expected = self._group(footer, digest, index, names)
        if again:
            self.access.cache.forget(self._entry(ranges))
        return self._with(ranges, expected, f"row group {index} has changed")

    def fetch_row_group(
        self,
        footer: pq.FileMetaData,
        digest: ParquetDigest | None,
        index: int,
        names: Iterable[str],
    ) -> None:
        """Have a row group in the cache; nothing of it is read if it is there."""
        ranges, expected = self._group(footer, digest, index, names)
        if not self.access.cache.has(self._entry(ranges)):
            self._with(ranges, expected)

    def group_size(
        self,
        footer: pq.FileMetaData,
        digest: ParquetDigest | None,
        index: int,
        names: Iterable[str],
    ) -> int:
        """The bytes that `row_group` fetches."""
        return sum(stop - start for start, stop in self._group(footer, digest, index, names)[0])

    def _group(
        self,
        footer: pq.FileMetaData,
        digest: ParquetDigest | None,
        index: int,
        names: Iterable[str],
    ) -> tuple[list[Range], str]:
        if digest is None:
            return joined(column_ranges(footer, names, [index]), _GAP), ""
        start, stop, expected = digest.groups[index]
        return [(start, stop)], expected

    def _entry(self, ranges: list[Range]) -> str:
        return f"{self.identity} {ranges}"

    def _with(self, ranges: list[Range], expected: str = "", fault: str = "") -> "RangeReader":
        """Open it with ranges fetched, together one entry of the cache.

        expected: the first digits of their SHA-256, "" if it is not known. Raises Damaged.
        """

        def fetch() -> bytes:
            content = b"".join(self._bytes(start, stop) for start, stop in ranges)
            if not hashlib.sha256(content).hexdigest().startswith(expected):
                raise Damaged(fault or "its bytes have changed")
            return content

        content = memoryview(self.access.cache.get(self._entry(ranges), fetch))
        pieces, at = [], 0
        for start, stop in ranges:
            pieces.append((start, content[at : at + stop - start]))
            at += stop - start
        return self.open(pieces)  # type: ignore[arg-type]


class RangeReader:
    """A file of Python over bytes that are in memory; others are fetched when they are read."""

    closed = False

    def __init__(self, file: StoredFile, pieces: Sequence[tuple[int, bytes]], block: int):
        self._file, self._pieces, self._block, self._at = file, list(pieces), block, 0
        self._last: tuple[int, bytes] = (0, b"")

    def __enter__(self) -> "RangeReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the bytes."""
        self.closed, self._pieces, self._last = True, [], (0, b"")

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether its position can change: always."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Change the position. whence: as in `io`."""
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Read bytes, fewer at the end. Raises StorageError."""
        stop = self._file.size if size < 0 else min(self._at + size, self._file.size)
        start, self._at = self._at, max(stop, self._at)
        if start >= stop:
            return b""
        for first, content in (*self._pieces, self._last):
            if first <= start and stop <= first + len(content):
                return bytes(content[start - first : stop - first])
        end = min(max(stop, start + self._block), self._file.size)
        content = self._file.read(start, end)
        self._last = (start, content)
        return content[: stop - start]
