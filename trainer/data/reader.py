"""Rows of a manifest by number: the encoded patch and its caption, in bounded memory.

Parquet is read one row group at a time, and only the columns that training needs. Recently used row
groups stay in a cache. A row group of more than LARGE_ROW_GROUP rows (SQL writes 122,880 unless
told otherwise: 6 GB of patches) cannot be read in parts at random: a file with such groups is first
copied, in record batches of 256 rows, to an unnamed temporary file in TMPDIR, which the system
removes when the process ends.

Row groups of a manifest in storage come through the cache of `lasr.storage`.
"""

import contextlib
import logging
import mmap
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import one_line
from lasr.pictures.png import decode_patch
from lasr.storage.remote import StoredFile
from schemas.columns import convert_column
from schemas.digest import Damaged
from schemas.manifest import PATCH_SIZE, PATCHES, Manifest, ManifestError, Role, digest_of
from schemas.parquet import ROW_GROUP
from schemas.parts import PartFile, open_part
from trainer.data.index import READ_ERRORS, Index, damage, opened, read_footer, read_index

log = logging.getLogger(__name__)

CONTENT = ["image.bytes", "caption"]  # read when a batch needs them
COLUMNS = ("image_id", "role", "size", "caption", "image")  # all that training needs
LARGE_ROW_GROUP = 2048  # rows, about 0.1 GB of patches
_PIECE = pa.schema([("bytes", pa.binary()), ("caption", pa.string())])
_IMAGE = PATCHES.field("image").type


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on, and why."""

    row: int  # in the whole manifest
    reason: str  # the end of a sentence that begins with the row


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
    dropped first. needed: roles that it has to have. Raises ManifestError at once if the manifest
    has no row or lacks such a role.
    """

    def __init__(self, manifest: Manifest, cache_rows: int, needed: Sequence[Role] = ("lr", "hr")):
        self.manifest, self.cache_rows = manifest, cache_rows
        self._footers = [read_footer(file) for file in manifest.parts]
        self._digests = [digest_of(file) for file in manifest.parts]
        self._large = [_largest_group(footer) > LARGE_ROW_GROUP for footer in self._footers]
        self.chunks = self._find_chunks()
        self.chunk_of = np.repeat(np.arange(len(self.chunks)), [c.rows for c in self.chunks])
        self.index: Index = read_index(manifest, self._footers, needed)
        self._cache: OrderedDict[int, Future[pa.Table | str]] = OrderedDict()
        self._copies: dict[int, _Copy] = {}
        self._lock, self._copying = threading.Lock(), threading.Lock()
        self._patch_ids = lru_cache(maxsize=4)(self._read_patch_ids)

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

    def read(self, rows: list[int]) -> Iterator[tuple[np.ndarray, str] | BadRow]:
        """The encoded patch (its bytes, as uint8) and the caption of each row, in this order.

        A row that cannot be used gives a BadRow. Raises ManifestError: a file is gone.
        """
        numbers = self.chunk_of[np.asarray(rows, np.int64)].tolist()
        chunks = {number: self._chunk(number) for number in dict.fromkeys(numbers)}
        for row, number in zip(rows, numbers, strict=True):
            chunk = chunks[number]
            if reason := self.index.fault_of(row):
                yield BadRow(row, reason)
            elif isinstance(chunk, str):
                yield BadRow(row, chunk)
            else:
                offset = row - self.chunks[number].first
                content, caption = (chunk.column(name)[offset] for name in ("bytes", "caption"))
                if content.is_valid and caption.is_valid:
                    yield np.frombuffer(content.as_buffer(), np.uint8), caption.as_py()
                else:
                    yield BadRow(row, "has no picture" if caption.is_valid else "has no caption")

    def locate(self, row: int) -> tuple[str, int, str | None]:
        """Name a row: its part, its number in that part (from 0), and its patch_id.

        The patch_id is None if the manifest has none or it cannot be read.
        """
        file = self.chunks[self.chunk_of[row]].file
        number = row - next(chunk.first for chunk in self.chunks if chunk.file == file)
        group, offset = 0, number
        while offset >= (rows := self._footers[file].row_group(group).num_rows):
            group, offset = group + 1, offset - rows
        ids = self._patch_ids(file, group)
        patch_id = ids[offset].as_py() if ids is not None else None
        return self.manifest.parts[file].name, number, patch_id

    def _read_patch_ids(self, file: int, group: int) -> pa.ChunkedArray | None:
        part_file, footer = self.manifest.parts[file], self._footers[file]
        if "patch_id" not in self.manifest.schema.names:
            return None
        with opened(part_file, footer, ["patch_id"], [group]) as part:
            try:
                return part.read_row_group(group, columns=["patch_id"])["patch_id"]
            except READ_ERRORS:
                return None

    def _chunk(self, number: int) -> pa.Table | str:
        """A chunk's patches and captions, or why it cannot be read.

        One thread reads it, others wait for the result.
        """
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
            except BaseException as error:  # of the machine, not of the row group: not kept
                future.set_exception(error)
                with self._lock:
                    self._cache.pop(number, None)
        return future.result()

    def _load(self, chunk: Chunk) -> pa.Table | str:
        file = self.manifest.parts[chunk.file]
        if self._large[chunk.file]:
            with self._copying:
                if chunk.file not in self._copies:
                    self._copies[chunk.file] = _copy_in_pieces(file)
            copy = self._copies[chunk.file]
            return copy.damage.get(chunk.index) or copy.pieces.get_batch(chunk.index)
        if isinstance(file, StoredFile):
            return self._fetch(file, chunk)
        with opened(file, self._footers[chunk.file], CONTENT) as part:
            try:
                if digest := self._digests[chunk.file]:
                    with open_part(file) as content:
                        digest.check_group(content, chunk.index)
                return _content(part.read_row_group(chunk.index, columns=CONTENT))
            except (*READ_ERRORS, Damaged) as error:
                return damage(file, error)

    def _fetch(self, file: StoredFile, chunk: Chunk) -> pa.Table | str:
        """A row group out of storage, which is fetched twice before it counts as damaged."""
        footer, digest = self._footers[chunk.file], self._digests[chunk.file]
        for again in (False, True):
            try:
                source = file.row_group(footer, digest, chunk.index, CONTENT, again)
                with pq.ParquetFile(
                    source, metadata=footer, page_checksum_verification=True
                ) as part:
                    return _content(part.read_row_group(chunk.index, columns=CONTENT))
            except (*READ_ERRORS, Damaged) as error:
                reason = damage(file, error)
        return reason

    def fetch(self, number: int) -> None:
        """Have a chunk of a manifest in storage on the local disk. Damage is found when it is read.

        Raises StorageError.
        """
        chunk = self.chunks[number]
        file = self.manifest.parts[chunk.file]
        if isinstance(file, StoredFile) and not file.access.cache.is_full:
            with contextlib.suppress(Damaged):
                file.fetch_row_group(
                    self._footers[chunk.file], self._digests[chunk.file], chunk.index, CONTENT
                )

    def stored_size(self, number: int) -> int:
        """The bytes that `fetch` has to fetch; 0: the chunk is not fetched by itself."""
        chunk = self.chunks[number]
        file = self.manifest.parts[chunk.file]
        if not isinstance(file, StoredFile) or self._large[chunk.file]:
            return 0
        return file.group_size(
            self._footers[chunk.file], self._digests[chunk.file], chunk.index, CONTENT
        )


def _content(table: pa.Table) -> pa.Table:
    """The columns `bytes` and `caption` of a row group, each in one piece."""
    image = convert_column(table["image"], _IMAGE)
    caption = convert_column(table["caption"], pa.string())
    # Arrow's struct_field gives null where the struct is null; the child alone would not.
    content = pc.struct_field(image, "bytes")
    return pa.table({"bytes": content, "caption": caption}).combine_chunks()


def _largest_group(footer: pq.FileMetaData) -> int:
    return max((footer.row_group(g).num_rows for g in range(footer.num_row_groups)), default=0)


@dataclass(frozen=True)
class _Copy:
    """A copy of a file with large row groups."""

    pieces: pa.RecordBatchFileReader  # of ROW_GROUP rows, none across two row groups
    damage: dict[int, str]  # number of a piece that could not be read: why


def _copy_in_pieces(file: PartFile) -> _Copy:
    """Copy a file's content in record batches of 256 rows, none across two row groups.

    The file is read as a stream, so that memory holds a page of it. The copy is memory-mapped: the
    system decides how much of it stays in memory.
    """
    log.warning(
        "%s: has row groups of more than %d rows, so its patches are first copied to %s. To avoid"
        " this, write the file with COPY … (FORMAT parquet, ROW_GROUP_SIZE %d)",
        *(file, LARGE_ROW_GROUP, tempfile.gettempdir(), ROW_GROUP),
    )
    failed: dict[int, str] = {}
    try:
        with tempfile.TemporaryFile() as copy:
            with pa.ipc.new_file(copy, _PIECE) as writer:
                for piece in _pieces(file, failed):
                    writer.write_batch(piece)
            copy.flush()
            mapped = mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ManifestError(
            f"{file}: cannot be copied to {tempfile.gettempdir()} ({one_line(error)})",
            "set TMPDIR to a folder with free space, or write the file with ROW_GROUP_SIZE"
            f" {ROW_GROUP}",
        ) from error
    return _Copy(pa.ipc.open_file(pa.py_buffer(mapped)), failed)


def _pieces(file: PartFile, failed: dict[int, str]) -> Iterator[pa.RecordBatch]:
    """The content of a file; pieces that cannot be read are empty values, and noted in `failed`."""
    number = 0
    source = file.stream() if isinstance(file, StoredFile) else file
    with pq.ParquetFile(
        source, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True
    ) as part:
        for group in range(part.num_row_groups):
            left, reason = part.metadata.row_group(group).num_rows, ""
            try:
                for piece in part.iter_batches(ROW_GROUP, row_groups=[group], columns=CONTENT):
                    yield _content(pa.Table.from_batches([piece])).to_batches()[0]
                    left, number = left - len(piece), number + 1
            except READ_ERRORS as error:
                reason = damage(file, error)
            while left:
                rows = min(left, ROW_GROUP)
                yield pa.record_batch([pa.nulls(rows, t) for t in _PIECE.types], schema=_PIECE)
                failed[number] = reason
                left, number = left - rows, number + 1


def decode(content: np.ndarray, role: Role) -> np.ndarray:
    """Decode a patch to n x n x 3 uint8 RGB, n the size of the role. Raises ValueError."""
    return decode_patch(content, PATCH_SIZE[role])
