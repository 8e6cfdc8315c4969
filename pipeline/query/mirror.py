"""A manifest in object storage, asked where it is: only footers and the columns needed are fetched.

A mirror is a temporary folder of sparse files, one for each Parquet file of the manifest and beside
it, of the same name and length. The footers are fetched at once; before a question runs, DuckDB's
plan says which columns it scans, and these go to where they are in the file. All else are holes
that take no disk. So a question meets local files, and the sandbox need not know of storage.

Pixels stay where they are: a question that needs them is refused. `fetch_row_groups` fetches those
of a few rows.
"""

import json
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.storage.config import StorageConfig
from lasr.storage.manifest import find_files
from lasr.storage.ranges import Range, column_ranges, fetch_tail, joined
from pipeline.storage import StoragePath, reported
from schemas.catalogue import BESIDE, beside, work_name
from schemas.current import POINTER, write_current
from schemas.manifest import PATCHES

AT_ONCE = 64  # requests: a row group has few bytes of a column, so that the way there is the cost
PIXELS = "image.bytes"
_GAP = 1 << 13  # bytes between two ranges that are fetched as one; pixels have more


@dataclass
class _File:
    """A file in storage and its mirror."""

    key: str
    size: int
    path: Path
    fetched: set[Range]  # of columns in row groups


class Mirror:
    """The mirror of a manifest. folder: an empty one on this machine. Raises UserError."""

    def __init__(self, address: str, folder: Path):
        self.address = address
        source = StoragePath(address)
        pa.set_io_thread_count(AT_ONCE)  # an S3 client made later has as many connections
        self._fs = source.fs
        self.manifest = folder / source.name
        with reported(source, "read"):
            self._files = [*self._list(source)]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._fetch_footer, self._files))

    def _list(self, source: StoragePath) -> Iterator[_File]:
        stored, current = find_files(self.address, StorageConfig())
        if stored[0].key.strip("/") == source.key.strip("/"):  # a single file
            yield self._sparse(stored[0].key, stored[0].size, self.manifest)
        else:
            self.manifest.mkdir()
            for file in stored:
                yield self._sparse(file.key, file.size, self.manifest / file.name)
        if current is not None:
            write_current(self.manifest / POINTER, PATCHES, current)
            work = source.parent / work_name(source.name)
            (self.manifest.parent / work.name).mkdir()
            kept = [work / name for name in current.beside.values()]
            yield from self._companions(kept, self.manifest.parent / work.name)
        if source.parent.name.endswith(":"):  # a whole bucket: nothing is beside it
            return
        others = [source.parent / beside(source.name, name) for name in BESIDE]
        yield from self._companions(others, self.manifest.parent)

    def _companions(self, files: list[StoragePath], folder: Path) -> Iterator[_File]:
        """The tables among these that are there."""
        for info in self._fs.get_file_info([file.key for file in files]):
            if info.type == pafs.FileType.File and info.base_name.endswith(".parquet"):
                yield self._sparse(info.path, info.size, folder / info.base_name)

    @staticmethod
    def _sparse(key: str, size: int, path: Path) -> _File:
        with open(path, "wb") as file:
            file.truncate(size)
        return _File(key, size, path, set())

    def _fetch_footer(self, file: _File) -> None:
        """The end of a file, from the first byte of its footer on."""
        with self._fs.open_input_file(file.key) as source:
            start, tail = fetch_tail(file.size, lambda a, b: source.read_at(b - a, a))
        with open(file.path, "r+b") as local:
            local.seek(start)
            local.write(tail)

    def fetch(
        self, connection: duckdb.DuckDBPyConnection, sql: str, stop: threading.Event | None = None
    ) -> None:
        """Fetch the columns that a statement scans. Raises UserError: it needs pixels."""
        scans = scanned(connection, sql)
        columns = {file.key: _leaves(file) for file in self._files}
        if scans is None or not all(any(map(scan.fits, columns.values())) for scan in scans):
            wanted = {key: {*leaves} - {PIXELS} for key, leaves in columns.items()}
        else:
            wanted = {
                key: {leaf for scan in scans for leaf in scan.of(leaves)}
                for key, leaves in columns.items()
            }
        if PIXELS in set().union(*wanted.values()):
            raise UserError(
                f"{self.address}: the question reads pixels, which are not fetched from storage",
                "leave out the column image, name image.path, or copy the manifest to a local disk",
            )
        missing = [(file, _ranges(file, wanted[file.key])) for file in self._files]
        self._get([(file, ranges) for file, ranges in missing if ranges], stop)

    def fetch_row_groups(self, of: dict[str, set[int]]) -> None:
        """Fetch some row groups, pixels included. of: their numbers by the name of the part."""
        wanted = [
            (file, _ranges(file, None, of[file.path.name]))
            for file in self._files
            if file.path.name in of
        ]
        self._get(wanted)

    def _get(
        self, wanted: list[tuple[_File, list[Range]]], stop: threading.Event | None = None
    ) -> None:
        def get(one: tuple[_File, list[Range]]) -> None:
            file, ranges = one
            with self._fs.open_input_file(file.key) as source, open(file.path, "r+b") as local:
                for start, end in ranges:
                    if stop and stop.is_set():
                        return
                    content = source.read_at(end - start, start)
                    local.seek(start)
                    local.write(content)

        with reported(StoragePath(self.address), "read"), ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(get, _shares(wanted)))
        if stop and stop.is_set():
            raise duckdb.InterruptException("the question was stopped")


@dataclass(frozen=True)
class Scan:
    """What a statement reads of a table, by DuckDB's plan, which does not say of which files.

    columns: their names, `image.path` for a field; none where rows are counted. filters: conditions
    on these and on others, as SQL.
    """

    columns: tuple[str, ...]
    filters: str

    def fits(self, leaves: Iterable[str]) -> bool:
        """Whether a file has all of the columns."""
        found = {part for leaf in leaves for part in (leaf, leaf.partition(".")[0])}
        return found.issuperset(self.columns)

    def of(self, leaves: Iterable[str]) -> set[str]:
        """The leaves of a file that are read, none if they are those of another table."""
        leaves = list(leaves)
        if not self.fits(leaves):
            return set()
        wanted = tuple(f"{column}." for column in self.columns)
        words = set(re.findall(r"\w+", self.filters))
        return {
            leaf
            for leaf in leaves
            if f"{leaf}.".startswith(wanted) or words.issuperset(re.findall(r"\w+", leaf))
        }


def scanned(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Scan] | None:
    """The scans of a statement; None if it has no plan."""
    try:
        (plan,) = connection.execute(f"EXPLAIN (FORMAT json) {sql}").fetchall()
    except duckdb.ParserException:
        return None
    found = []

    def look(node: dict[str, Any]) -> None:
        if "PARQUET" in node["name"].upper():
            columns, filters = (
                [about] if isinstance(about, str) else about
                for about in (node["extra_info"].get(k, []) for k in ("Projections", "Filters"))
            )
            found.append(Scan(tuple(filter(None, columns)), " ".join(filters)))
        for child in node["children"]:
            look(child)

    for node in json.loads(plan[1]):
        look(node)
    return found


def _leaves(file: _File) -> list[str]:
    """The columns of a file, as Parquet counts them: a list is one, a field of a struct too."""
    columns = pq.read_metadata(file.path).schema
    paths = [columns.column(i).path for i in range(len(columns))]
    return [path.removesuffix(".list.element") for path in paths]


def _ranges(
    file: _File, leaves: set[str] | None, groups: Iterable[int] | None = None
) -> list[Range]:
    """The bytes of some columns, None: of all, that were not fetched yet."""
    ranges = column_ranges(pq.read_metadata(file.path), leaves, groups)
    new = [each for each in ranges if each not in file.fetched]
    file.fetched.update(new)
    return joined(new, _GAP)


def _shares(wanted: list[tuple[_File, list[Range]]]) -> Iterator[tuple[_File, list[Range]]]:
    """As many lists as requests at once, also of a single file."""
    files = max(len(wanted), 1)
    pieces = -(-AT_ONCE // files)
    for file, ranges in wanted:
        size = max(-(-len(ranges) // pieces), 1)
        for start in range(0, len(ranges), size):
            yield file, ranges[start : start + size]
