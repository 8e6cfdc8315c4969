"""Photographs in the rows of Parquet files, as data sets on the Hugging Face Hub have them.

Pixels are in a column of type struct<bytes, path>, or in one of bytes, as img2dataset writes it.
"""

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.errors import UserError, one_line
from lasr.pictures.formats import readable_suffixes
from pipeline.storage import StoragePath
from schemas.parquet import METADATA_KEY

_NAMES = {"image", "img", *(suffix.removeprefix(".") for suffix in readable_suffixes())}
_BATCH = 4  # rows decoded at once
_WINDOW = 32  # rows that stay in memory: threads ask for rows in about their order
_OPEN = 3  # files that stay open
_PAGE = 1 << 20  # bytes read at once


def check_photographs(path: StoragePath) -> None:
    """Raise UserError if a Parquet file is one of this project's, which holds patches."""
    schema = _open(path).schema_arrow
    if METADATA_KEY in (schema.metadata or {}) or {"patch_id", "role"} <= set(schema.names):
        raise UserError(
            f"{path}: a manifest of patches, not photographs",
            "give the photographs that it was built from",
        )


def image_column(path: StoragePath) -> str:
    """The column with pictures: the one called `image`, or the only one.

    Raises UserError if there is none, or several of other names; OSError.
    """
    schema = _open(path).schema_arrow
    found = [field.name for field in schema if _holds_pictures(field)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    about = (
        f"several columns of pictures ({', '.join(found)})" if found else "no column of pictures"
    )
    raise UserError(
        f"{path}: {about}",
        "a file with one column `image` of struct<bytes, path> is read, or of bytes",
    )


def _holds_pictures(field: pa.Field) -> bool:
    if _is_bytes(field.type):
        return field.name.lower() in _NAMES
    if not pa.types.is_struct(field.type):
        return False
    at = field.type.get_field_index("bytes")
    return at >= 0 and _is_bytes(field.type.field(at).type)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def row_paths(path: StoragePath, column: str) -> Iterator[str | None]:
    """For each row the path that it records, or None. No picture is read. Raises OSError."""
    file = _open(path)
    kind = file.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        yield from [None] * file.metadata.num_rows
        return
    with _damage_as_os_error():
        for batch in file.iter_batches(4096, columns=[f"{column}.path"]):
            for row in batch.column(0).to_pylist():
                text = row["path"] if row else None
                yield text if isinstance(text, str) else None


def row_reader(path: StoragePath, column: str, modified: int) -> "RowReader":
    """The reader of a file, which stays open for the next rows."""
    key = (path.uri, column, modified)
    with _LOCK:
        reader = _READERS.pop(key, None) or RowReader(path, column)
        _READERS[key] = reader
        while len(_READERS) > _OPEN:
            _READERS.popitem(last=False)
    return reader


class RowReader:
    """Pictures of a Parquet file by row, for threads that ask for them in about their order.

    Parquet cannot be entered at a row, only at a row group, which may hold gigabytes. So rows are
    decoded one after the other, and the last _WINDOW of them stay. A row before these costs its row
    group again.
    """

    def __init__(self, path: StoragePath, column: str) -> None:
        self._path, self._column = path, column
        self._lock = threading.Lock()
        self._recent: OrderedDict[int, bytes | None] = OrderedDict()
        self._coming: Iterator[tuple[int, bytes | None]] = iter(())
        self._next = 0  # the row that comes next
        self._starts: list[int] | None = None  # first rows of row groups, and the end

    def read(self, row: int) -> bytes:
        """The picture in a row. Raises OSError: damage, or a row without bytes."""
        with self._lock, _damage_as_os_error():
            if row not in self._recent:
                self._advance(row)
            content = self._recent[row]
        if content is None:
            raise OSError("the row holds no bytes")
        return content

    def _advance(self, row: int) -> None:
        if self._starts is None:
            about = _open(self._path).metadata
            sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
            self._starts = [0, *itertools.accumulate(sizes)]
            self._coming, self._next = self._from(0)
        group = max(g for g, start in enumerate(self._starts[:-1]) if start <= row)
        # A little ahead: other threads will ask for the rows between.
        if row < self._next or self._starts[group] > self._next + _WINDOW:
            self._coming, self._next = self._from(group)
        while self._next <= row:
            self._next, content = next(self._coming)
            self._recent[self._next] = content
            self._next += 1
            if len(self._recent) > _WINDOW:
                self._recent.popitem(last=False)

    def _from(self, group: int) -> tuple[Iterator[tuple[int, bytes | None]], int]:
        assert self._starts is not None
        return self._rows(group, self._starts[group]), self._starts[group]

    def _rows(self, group: int, row: int) -> Iterator[tuple[int, bytes | None]]:
        file = _open(self._path)
        is_struct = pa.types.is_struct(file.schema_arrow.field(self._column).type)
        groups = range(group, file.metadata.num_row_groups)
        leaf = f"{self._column}.bytes" if is_struct else self._column
        for batch in file.iter_batches(_BATCH, row_groups=groups, columns=[leaf]):
            for value in batch.column(0):
                value = value["bytes"] if is_struct and value.is_valid else value
                yield row, value.as_py() if value.is_valid else None
                row += 1


@contextlib.contextmanager
def _damage_as_os_error() -> Iterator[None]:
    """Turn the errors of a damaged Parquet file into OSError."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(one_line(error)) from error


def _open(path: StoragePath) -> pq.ParquetFile:
    with _damage_as_os_error():
        return pq.ParquetFile(
            path.key,
            filesystem=path.fs,
            buffer_size=_PAGE,
            pre_buffer=False,
            page_checksum_verification=True,
        )


_READERS: OrderedDict[tuple[str, str, int], RowReader] = OrderedDict()
_LOCK = threading.Lock()
