"""What is known of every row before the first step: its photograph, its role, and what is wrong.

Only the small columns are read. A row without a role belongs to neither side and is left out. A row
with another fault keeps its position in the order of training, and another row takes its place when
its turn comes (see trainer/data/dataset.py).
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import one_line
from lasr.storage.manifest import THREADS
from lasr.storage.remote import StoredFile
from schemas.columns import convert
from schemas.manifest import PATCH_SIZE, PATCHES, Manifest, ManifestError, Role
from schemas.parts import PartFile, readable

COLUMNS = ["image_id", "role", "size", "caption"]
SPLIT = "split"  # a column that a manifest may lack
NO_ROLE = -1
ROLES = list(PATCH_SIZE)  # a role is its position here

READ_ERRORS = (pa.ArrowException, OSError)  # of Arrow's readers
FINE, UNREADABLE, NO_PHOTOGRAPH, NO_SUCH_ROLE, NO_CAPTION, OTHER_SIZE = range(6)
_FAULTS = {
    UNREADABLE: ("is in a damaged part of the file", "repeat its `lasr build` with --verify"),
    NO_PHOTOGRAPH: ("has no image_id", "select image_id as it was built"),
    NO_SUCH_ROLE: ("is neither 'lr' nor 'hr'", "correct its role"),
    NO_CAPTION: ("has no caption", "leave such rows out: WHERE trim(caption) <> ''"),
}


@dataclass(frozen=True)
class Index:
    """One entry for each row of a manifest."""

    photograph: np.ndarray  # int64: the same number for rows of one photograph
    role: np.ndarray  # int8: 0 lr, 1 hr, NO_ROLE
    fault: np.ndarray  # int8: FINE, or one of the others above
    held_out: np.ndarray  # bool: whether its split is another than `train`; False if it has none

    @property
    def faulty(self) -> np.ndarray:
        """The rows that cannot be trained on, as far as the small columns tell."""
        return np.flatnonzero(self.fault)

    def fault_of(self, row: int) -> str:
        """What is wrong with a row, as the end of a sentence; "" if nothing is."""
        return self.describe(row)[0] if self.fault[row] else ""

    def describe(self, row: int) -> tuple[str, str]:
        """What is wrong with a faulty row, and how to fix it."""
        fault = int(self.fault[row])
        if fault == OTHER_SIZE:
            role = ROLES[self.role[row]]
            return (
                f"is an '{role}' patch of another size than {PATCH_SIZE[role]} pixels",
                "build the manifest again",
            )
        return _FAULTS[fault]


def read_index(
    manifest: Manifest, footers: list[pq.FileMetaData], needed: Sequence[Role] = ("lr", "hr")
) -> Index:
    """Read the index of a manifest; no pixel is read.

    needed: roles of which there has to be a row. Raises ManifestError: a file is gone, there is no
    row, or none of a needed role.
    """
    columns = [*COLUMNS, SPLIT] if SPLIT in manifest.schema.names else COLUMNS
    threads = THREADS if any(isinstance(f, StoredFile) for f in manifest.parts) else 1
    with ThreadPoolExecutor(threads) as executor:
        of_files = executor.map(lambda f, footer: _read_file(f, footer, columns),
                                manifest.parts, footers)  # fmt: skip
        checked = [each for of_file in of_files for each in of_file]
    photographs, roles, faults, held_out = zip(*checked, strict=True) if checked else ((),) * 4
    if not sum(map(len, roles)):
        raise ManifestError(f"{manifest.where}: no rows", "loosen the query, or build it again")
    chunks = [chunk for column in photographs for chunk in column.chunks]
    codes = pa.chunked_array(chunks, pa.string()).dictionary_encode().combine_chunks().indices
    index = Index(codes.to_numpy(), *map(np.concatenate, (roles, faults, held_out)))
    for name in needed:
        if not (index.role == ROLES.index(name)).any():
            if damaged := int((index.fault == UNREADABLE).sum()):
                raise ManifestError(
                    f"{manifest.where}: {damaged} of {len(index.role)} rows are in damaged parts of"
                    f" its files, and no '{name}' row is left",
                    "build the manifest again",
                )
            raise ManifestError(
                f"{manifest.where}: no '{name}' rows, training needs both roles",
                "select both in the WHERE clause, or pass --freeze-encoders, which needs lr alone",
            )
    return index


# Photograph, role, fault, and whether it is held out.
_Checked = tuple[pa.ChunkedArray, np.ndarray, np.ndarray, np.ndarray]


def _read_file(file: PartFile, footer: pq.FileMetaData, columns: list[str]) -> list[_Checked]:
    """The index of a file. A damaged one is read by row groups and columns."""
    with opened(file, footer, columns) as part:
        try:
            return [
                _check(pa.Table.from_batches([batch]), damaged=False)
                for batch in part.iter_batches(2**16, columns=columns)
            ]
        except READ_ERRORS as error:
            damage(file, error)
        checked = []
        for group in range(footer.num_row_groups):
            found = {name: _column(file, part, group, name) for name in columns}
            damaged = any(column is None for column in found.values())
            nothing = pa.chunked_array([pa.nulls(footer.row_group(group).num_rows)])
            filled = {k: nothing if c is None else c for k, c in found.items()}
            checked.append(_check(pa.table(filled), damaged))
        return checked


def _column(file: PartFile, part: pq.ParquetFile, group: int, name: str) -> pa.ChunkedArray | None:
    try:
        return part.read_row_group(group, columns=[name])[name]
    except READ_ERRORS as error:
        damage(file, error)
        return None


def _check(table: pa.Table, damaged: bool) -> _Checked:
    """What the index holds of each row of a table, all of it if it is damaged."""
    sizes = table["size"].cast(pa.int64(), safe=False)  # a size may be beyond 32 bit
    table = convert(table.drop_columns(["size"]), PATCHES)
    image_id, caption = table["image_id"], pc.utf8_trim_whitespace(table["caption"])
    role = _plain(pc.fill_null(pc.index_in(table["role"], pa.array(ROLES)), NO_ROLE))
    size_of_role = np.array([*PATCH_SIZE.values(), 0])[role]
    fault = np.select(
        [
            np.full(len(table), damaged),
            _plain(pc.is_null(image_id)),
            role == NO_ROLE,
            _plain(pc.fill_null(sizes, 0)) != size_of_role,
            _plain(pc.fill_null(pc.equal(caption, ""), True)),
        ],
        [UNREADABLE, NO_PHOTOGRAPH, NO_SUCH_ROLE, OTHER_SIZE, NO_CAPTION],
        FINE,
    )
    held_out = np.zeros(len(table), bool)
    if SPLIT in table.column_names:
        held_out = _plain(pc.fill_null(pc.not_equal(table[SPLIT], "train"), False))
    return pc.fill_null(image_id, ""), role.astype(np.int8), fault.astype(np.int8), held_out


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    array: np.ndarray = column.to_numpy()
    return array


def read_footer(file: PartFile) -> pq.FileMetaData:
    """The footer of a part. Raises ManifestError: it is gone, or damaged."""
    with _not_readable(file):
        return pq.read_metadata(readable(file))


@contextmanager
def opened(
    file: PartFile,
    footer: pq.FileMetaData,
    columns: Sequence[str],
    groups: Iterable[int] | None = None,
) -> Iterator[pq.ParquetFile]:
    """Open a part, with the footer that was read before. Raises ManifestError: it is gone.

    columns, groups (default: all): what is to be read, and is fetched if the part is in storage.
    """
    source: Any = file
    if isinstance(file, StoredFile):
        source = file.columns(footer, columns, groups)
    with _not_readable(file):
        part = pq.ParquetFile(source, metadata=footer, page_checksum_verification=True)
    with part:
        yield part


@contextmanager
def _not_readable(file: PartFile) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        if isinstance(error, MemoryError):
            raise
        raise ManifestError(
            f"{file}: cannot be read ({one_line(error)})", "build the manifest again"
        ) from error


def damage(file: PartFile, error: Exception) -> str:
    """Why a row group cannot be read, as the end of a sentence that begins with a row.

    Raises what is no damage: MemoryError, which is one of Arrow's errors, too; and ManifestError
    for an error of the system, such as too many open files. A bad sector of the disk is damage.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        raise ManifestError(
            f"{file}: cannot be read ({one_line(error)})", "try again, or build the manifest again"
        ) from error
    return (
        f"is in a row group that cannot be read ({one_line(error, 120)}; `lasr build` with --verify"
        " makes damaged parts again)"
    )
