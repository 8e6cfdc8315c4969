"""Rows of a manifest by number: the encoded patch and its caption, in bounded memory.

Parquet is read one row group at a time, and only the columns that training needs. Recently used row
groups stay in a cache. A row group of more than LARGE_ROW_GROUP rows (SQL writes 122,880 unless
told otherwise: 6 GB of patches) cannot be read in parts at random: a file with such groups is first
copied, in record batches of 256 rows, to an unnamed temporary file in TMPDIR, which the system
removes when the process ends.
"""

import itertools
import logging
import mmap
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import one_line
from lasr.pictures.png import decode_png
from schemas.manifest import PATCH_SIZE, Manifest, ManifestError, Role
from schemas.parquet import ROW_GROUP

log = logging.getLogger(__name__)

INDEX = ["image_id", "role", "size", "caption"]  # read and checked before the first step
CONTENT = ["image.bytes", "caption"]  # read when a batch needs them
COLUMNS = ("image_id", "role", "size", "caption", "image")  # all that training needs
LARGE_ROW_GROUP = 2048  # rows, about 0.1 GB of patches


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows that are read together: a row group, or a record batch of a large one."""

    file: int  # index of the file in the manifest
    index: int  # of the row group in the file, or of the record batch in its copy
    first: int  # number of its first row in the whole manifest
    rows: int


class Reader:
    """The rows of a manifest. Thread-safe.

    cache_rows: rows whose encoded patches may stay in memory; the least recently used chunks are
    dropped first. Raises ManifestError at once if the manifest cannot be trained on: no rows, a
    role is missing or unknown, sizes are not those of the role, an image_id or caption is missing.
    """

    def __init__(self, manifest: Manifest, cache_rows: int):
        self.manifest, self.cache_rows = manifest, cache_rows
        self._footers = [pq.read_metadata(file) for file in manifest.files]
        self._large = [_largest_group(footer) > LARGE_ROW_GROUP for footer in self._footers]
        self.chunks = self._find_chunks()
        self.chunk_of = np.repeat(np.arange(len(self.chunks)), [c.rows for c in self.chunks])
        self.photograph, self.is_lr = _read_index(manifest, self._footers)  # one entry per row
        self._cache: OrderedDict[int, Future[pa.Table]] = OrderedDict()
        self._copies: dict[int, pa.RecordBatchFileReader] = {}
        self._lock, self._copying = threading.Lock(), threading.Lock()

    def _find_chunks(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        first = 0
        for file, (footer, large) in enumerate(zip(self._footers, self._large, strict=True)):
            piece = 0
            for group in range(footer.num_row_groups):
                left = footer.row_group(group).num_rows
                while left:
                    rows = min(left, ROW_GROUP) if large else left
                    chunks.append(Chunk(file, piece if large else group, first, rows))
                    first, left, piece = first + rows, left - rows, piece + 1
        return chunks

    def read(self, rows: list[int]) -> Iterator[tuple[np.ndarray, str]]:
        """The encoded patch (its bytes, as uint8) and the caption of each row, in this order."""
        numbers = self.chunk_of[rows].tolist()
        tables = {number: self._chunk(number) for number in dict.fromkeys(numbers)}
        for row, number in zip(rows, numbers, strict=True):
            offset = row - self.chunks[number].first
            table = tables[number]
            content, caption = (table.column(name)[offset] for name in ("bytes", "caption"))
            if not content.is_valid:
                raise ManifestError(
                    f"{self.manifest.path}: row {row} has no picture",
                    "leave such rows out, or build the manifest again",
                )
            yield np.frombuffer(content.as_buffer(), np.uint8), caption.as_py()

    def _chunk(self, number: int) -> pa.Table:
        """A chunk's patches and captions. One thread reads it, others wait for the result."""
        with self._lock:
            future = self._cache.get(number)
            is_mine = future is None
            if future is None:
                future = self._cache[number] = Future()
            self._cache.move_to_end(number)
            cached = sum(self.chunks[n].rows for n in self._cache)
            while cached > self.cache_rows and len(self._cache) > 1:
                cached -= self.chunks[self._cache.popitem(last=False)[0]].rows
        if is_mine:
            try:
                future.set_result(self._load(self.chunks[number]))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _load(self, chunk: Chunk) -> pa.Table:
        file = self.manifest.files[chunk.file]
        if self._large[chunk.file]:
            with self._copying:
                if chunk.file not in self._copies:
                    self._copies[chunk.file] = _copy_in_pieces(file)
            return _content(
                pa.Table.from_batches([self._copies[chunk.file].get_batch(chunk.index)])
            )
        with _arrow_errors(file):
            part = pq.ParquetFile(file, metadata=self._footers[chunk.file])
            return _content(part.read_row_group(chunk.index, columns=CONTENT))


@contextmanager
def _arrow_errors(file: Path) -> Iterator[None]:
    """Turn Arrow's errors about a damaged or missing file into a ManifestError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{file}: cannot be read ({one_line(error)})", "build the manifest again"
        ) from error


def _content(table: pa.Table) -> pa.Table:
    """The columns `bytes` and `caption` of a row group, each in one piece."""
    content = pc.struct_field(table["image"], "bytes")
    return pa.table({"bytes": content, "caption": table["caption"]}).combine_chunks()


def _largest_group(footer: pq.FileMetaData) -> int:
    return max((footer.row_group(g).num_rows for g in range(footer.num_row_groups)), default=0)


def _copy_in_pieces(file: Path) -> pa.RecordBatchFileReader:
    """A copy of a file's content in record batches of 256 rows, none across two row groups.

    The file is read as a stream, so that memory holds a page of it. The copy is memory-mapped: the
    system decides how much of it stays in memory.
    """
    log.warning(
        "%s: has row groups of more than %d rows, so its patches are first copied to %s. To avoid"
        " this, write the file with COPY … (FORMAT parquet, ROW_GROUP_SIZE %d)",
        *(file, LARGE_ROW_GROUP, tempfile.gettempdir(), ROW_GROUP),
    )
    part = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
    pieces = (
        piece
        for group in range(part.num_row_groups)
        for piece in part.iter_batches(ROW_GROUP, row_groups=[group], columns=CONTENT)
    )
    try:
        with tempfile.TemporaryFile() as copy:
            first = next(pieces)
            with pa.ipc.new_file(copy, first.schema) as writer:
                for piece in itertools.chain([first], pieces):
                    writer.write_batch(piece)
            copy.flush()
            mapped = mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ManifestError(
            f"{file}: cannot be copied to {tempfile.gettempdir()} ({one_line(error)})",
            "set TMPDIR to a folder with free space, or write the file with ROW_GROUP_SIZE"
            f" {ROW_GROUP}",
        ) from error
    return pa.ipc.open_file(pa.py_buffer(mapped))


def _read_index(
    manifest: Manifest, footers: list[pq.FileMetaData]
) -> tuple[np.ndarray, np.ndarray]:
    """For each row a number for its photograph, and whether it is `lr`; no pixel is read.

    Raises ManifestError as `Reader` does.
    """
    photographs, roles, first = [], [], 0
    for file, footer in zip(manifest.files, footers, strict=True):
        with _arrow_errors(file):
            part = pq.ParquetFile(file, metadata=footer)
            for batch in part.iter_batches(2**16, columns=INDEX):
                _check_rows(manifest.path, batch, first)
                photographs.append(batch["image_id"])
                roles.append(pc.equal(batch["role"], "lr"))
                first += len(batch)
    if not first:
        raise ManifestError(f"{manifest.path}: no rows", "loosen the query, or build it again")
    is_lr = np.concatenate([part.to_numpy(zero_copy_only=False) for part in roles])
    for role, missing in (("lr", not is_lr.any()), ("hr", is_lr.all())):
        if missing:
            raise ManifestError(
                f"{manifest.path}: no '{role}' rows, training needs both roles",
                "select both in the WHERE clause",
            )
    codes = pa.chunked_array(photographs).dictionary_encode().combine_chunks().indices
    return codes.to_numpy(), is_lr


def _check_rows(path: Path, rows: pa.RecordBatch, first: int) -> None:
    """Check that every row has an image_id, a role, that role's size and a caption.

    first: number of the first of these rows. Raises ManifestError that names the first bad row.
    """
    role, caption = rows["role"].cast(pa.string()), rows["caption"].cast(pa.string())

    def refuse(wrong: pa.Array, problem: str, fix: str) -> None:
        offset = pc.index(wrong, True).as_py()
        if offset >= 0:
            raise ManifestError(f"{path}: row {first + offset} {problem}", fix)

    refuse(pc.is_null(rows["image_id"]), "has no image_id", "select image_id as it was built")
    roles = pa.array(list(PATCH_SIZE))
    refuse(pc.invert(pc.is_in(role, roles)), "is neither 'lr' nor 'hr'", "correct its role")
    for name, size in PATCH_SIZE.items():
        off = pc.fill_null(pc.not_equal(rows["size"], size), True)
        refuse(
            pc.and_(pc.equal(role, name), off),
            f"is an '{name}' patch of another size than {size} pixels",
            "build the manifest again",
        )
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(caption), ""), True)
    refuse(empty, "has no caption", "leave such rows out: WHERE trim(caption) <> ''")


def decode(content: np.ndarray, role: Role, row: int) -> np.ndarray:
    """Decode a PNG to n x n x 3 uint8 RGB, n the size of the role. Raises ManifestError."""
    size = PATCH_SIZE[role]
    fix = "leave this row out, or build the manifest again"
    expected = f"expected a {size}x{size} PNG"
    try:
        pixels = decode_png(content)
    except ValueError as error:
        raise ManifestError(f"manifest row {row}: no picture, {expected}", fix) from error
    if pixels.shape != (size, size, 3):
        found = f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
        raise ManifestError(f"manifest row {row}: {found}, {expected}", fix)
    return pixels
