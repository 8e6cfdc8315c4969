"""Parts: the Parquet files in the work folder from which a manifest is published.

A part is a pair of files. `part-x.parquet` holds rows of the manifest, `part-x.images.parquet` rows
of the catalogue and the state of every photograph it was made from. The second is written last: if
it exists, the part is complete. x is the digest of the first file (`schemas.digest`): a part of
other content has another name.

What is checked when. Always: all bytes of the catalogue rows, and whether size and modification
time of the file of rows are those of its last check. All bytes of the file of rows: if they are
not, before a part is published that the manifest does not hold, before its rows are reused, and
with `--verify`. A part that is damaged or missing counts as not made: it is named, and its
photographs are done again.
"""

import logging
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.errors import printable
from lasr.pictures.formats import installed_extras
from lasr.terminal.summary import counted
from pipeline.build.fingerprint import Identities, fingerprint
from pipeline.inputs.photographs import Found, State
from pipeline.stages.rows import is_consistent
from pipeline.storage import StoragePath, read_whole_table, reason, reported, scratch
from schemas.catalogue import IMAGES
from schemas.digest import BinaryFile, Damaged, parquet_digest
from schemas.manifest import PATCH_SIZE, Row, part_name
from schemas.parquet import ROW_GROUP, decoded_metadata, write_table

log = logging.getLogger(__name__)

RETRIED = {"failed", "unreadable"}  # a rerun tries these photographs again
_GROUPS = 4  # row groups of a part in memory, about 15 MB each


@dataclass(frozen=True)
class Shard:
    """Photographs that become one part together."""

    name: str
    photographs: tuple[Found, ...]
    # Photograph's name -> finished part that holds its patches, selected as this build selects, and
    # its name there.
    reusable: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """How many photographs, and which: the name of the task in Prefect's pages."""
        names = [photograph.name for photograph in self.photographs]
        which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        return f"{counted(len(names), 'photograph')}: {printable(which)}"


@dataclass(frozen=True)
class Part:
    """A finished part: the fingerprints and the photographs it was made from."""

    name: str
    selection: str  # Identities.selection
    rows: str  # Identities.rows
    states: dict[str, State]  # photograph's name -> its state; of version 0.1.0 size and time only
    status: dict[str, str]  # photograph's name -> its status in the catalogue
    image_ids: dict[str, str | None]  # photograph's name -> sha256 of its bytes
    retried: frozenset[str] = frozenset(RETRIED)  # `retried` of its metadata
    about: dict[str, Any] = field(default_factory=dict)  # the metadata of its catalogue file
    catalogue: pa.Table | None = field(default=None, compare=False, repr=False)  # its rows

    @property
    def is_earlier(self) -> bool:
        """Whether a version without digests made it: its name says what it was made from."""
        return re.fullmatch(r"part-[0-9a-f]{16}", self.name) is not None

    def done(self) -> dict[str, State]:
        """The states of the photographs that a rerun does not try again."""
        states = self.states.items()
        return {n: state for n, state in states if self.status.get(n) not in self.retried}


def retried(metadata: Mapping[str, Any]) -> frozenset[str]:
    """The statuses of a part's photographs that a rerun tries again, by the part's metadata.

    A format that was not supported may be, once an extra is installed.
    """
    same = metadata.get("extras") == list(installed_extras())
    return frozenset(RETRIED if same else {*RETRIED, "unsupported"})


def part_files(work: StoragePath, name: str) -> tuple[StoragePath, StoragePath]:
    """The files of a part: patches and catalogue rows."""
    return work / f"{name}.parquet", work / f"{name}.images.parquet"


def catalogue_identity(catalogue: Iterable[Row]) -> dict[str, str]:
    """Metadata for the file of rows: content, name and status of each photograph.

    It tells parts without rows from each other.
    """
    photographs = [[row["path"], row["image_id"], row["status"]] for row in catalogue]
    return {"la-sr.photographs": fingerprint(photographs)}


def part_metadata(identities: Identities, shard: Shard) -> dict[str, Any]:
    """The metadata of a part's catalogue file, which `read_parts` reads back."""
    return {
        "selection": identities.selection,
        "rows": identities.rows,
        "states": {photograph.name: photograph.state for photograph in shard.photographs},
        "extras": installed_extras(),
    }


def keep_part(work: StoragePath, rows: Path, catalogue: pa.Table, about: dict[str, Any]) -> str:
    """Make a finished file of rows and its catalogue a part; returns its name.

    rows: a local file with a digest (see `scratch`). about: `part_metadata`. Raises StorageError.
    """
    with open(rows, "rb") as file:
        patches = work / file_name(file)
    _clear_folder(patches)
    patches.take(rows)
    name = patches.name.removesuffix(".parquet")
    write_catalogue(work, name, catalogue, about)
    return name


def file_name(file: BinaryFile) -> str:
    """The name of a file of rows, from its digest. Raises Damaged."""
    found = parquet_digest(file)
    if found is None:
        raise Damaged("it has no digest")
    return f"{part_name(found.content)}.parquet"


def write_catalogue(
    work: StoragePath, name: str, catalogue: pa.Table, about: dict[str, Any]
) -> None:
    """Write the catalogue rows of a part whose file of rows is in place and intact."""
    patches, entries = part_files(work, name)
    with reported(patches, "read"):
        about = about | {"part": name, "checked": patches.state()}
    with scratch(work, f"{name}.images") as temporary:
        write_table(temporary, as_catalogue(catalogue), about)
        _clear_folder(entries)
        entries.take(temporary)


def as_catalogue(table: pa.Table) -> pa.Table:
    """Catalogue rows with all columns of IMAGES; those of an earlier version have fewer."""
    for column in IMAGES:
        if column.name not in table.schema.names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return table.select(IMAGES.names).cast(IMAGES)


def read_parts(
    work: StoragePath, published: Collection[str] = (), verify: bool = False
) -> list[Part]:
    """All finished parts in the work folder, of any parameters, sorted by name; changes nothing.

    published: names of the files in the manifest. verify: read all parts in full. Those that are
    damaged or incomplete are named on the log and left out.
    """
    ending = ".images.parquet"
    names = [name.removesuffix(ending) for name in work.names() if name.endswith(ending)]

    def read(name: str) -> Part | None:
        try:
            return read_part(work, name, verify or f"{name}.parquet" not in published)[0]
        except FAULTS as error:
            log.warning("%s", damage(work, name, error))
            return None

    with ThreadPoolExecutor(8) as executor:
        return [part for part in executor.map(read, names) if part]


# What reading a part raises that is damaged, or was not written by a build.
FAULTS = (OSError, pa.ArrowException, Damaged, KeyError, ValueError, TypeError)


def damage(work: StoragePath, name: str, error: Exception) -> str:
    """A line about a part whose check raised `error`, which it raises if the storage failed."""
    if isinstance(error, OSError) and not (work.is_local or isinstance(error, FileNotFoundError)):
        with reported(work, "read"):
            raise error
    what = "a file is missing" if isinstance(error, FileNotFoundError) else reason(error)
    return f"{work / name}: damaged ({what}); its photographs are done again"


def read_part(work: StoragePath, name: str, in_full: bool) -> tuple[Part, pa.Table]:
    """A part and its catalogue rows, after the checks. Raises one of FAULTS.

    in_full: read all bytes of its rows, even if their state says that this was done.
    """
    patches, entries = part_files(work, name)
    catalogue, has_digest = read_whole_table(entries)
    about = decoded_metadata(catalogue.schema)
    paths = catalogue["path"].to_pylist()
    status, image_ids = (
        dict(zip(paths, catalogue[column].to_pylist(), strict=True))
        for column in ("status", "image_id")
    )
    part = Part(
        name, about["selection"], about["rows"], about["states"], status, image_ids,
        retried(about), about, as_catalogue(catalogue),
    )  # fmt: skip
    state = patches.state()
    if not state[0]:
        raise Damaged("it is empty")
    if not part.is_earlier:
        if not has_digest or about["part"] != name:
            raise Damaged("its catalogue has no digest, or is that of another part")
        if in_full or state != about["checked"]:
            check_named(patches)
    else:
        with patches.open() as file:
            _check_rows(file, catalogue)
    return part, catalogue


def _check_rows(file: BinaryFile, catalogue: pa.Table) -> None:
    """Check the rows of an earlier part as far as is possible. Raises one of FAULTS.

    Its pages have no checksums: everything must decode, every row must agree with itself and with
    its photograph, and the numbers of patches must be those of the catalogue.
    """
    entries = {row["path"]: row for row in catalogue.to_pylist()}
    counts = Counter[tuple[str, str]]()
    for batch in pq.ParquetFile(file).iter_batches(ROW_GROUP):
        for row in batch.to_pylist():
            if not is_consistent(row, entries.get(row["image_path"])):
                raise Damaged(f"row {counts.total()} contradicts itself")
            counts[row["image_path"], row["role"]] += 1
    for path, entry in entries.items():
        if any(entry[f"n_{role}"] != counts[path, role] for role in PATCH_SIZE):
            raise Damaged(f"it has other rows of {path} than its catalogue says")


def check_named(part: StoragePath) -> None:
    """Read all bytes of a file whose name ends in its digest. Raises Damaged, OSError."""
    with part.open() as file:
        found = parquet_digest(file)
        if found is None or file_name(file) != part.name:
            raise Damaged("it is not what its name says")
        found.check(file)


def _clear_folder(path: StoragePath) -> None:
    """Remove a folder that has the name of a part, which only a fault can have made."""
    if path.is_local and path.path.is_dir():
        path.remove()


class ReusableRows:
    """Rows of finished parts by photograph, whose patches need no reading or selecting again.

    Safe for many threads.
    """

    def __init__(self, work: StoragePath, origins: Mapping[str, tuple[str, str]]):
        """origins: photograph's name -> the part that holds its rows, and its name there.

        Photographs of damaged parts are left out.
        """
        self._rows: dict[str, PartRows] = {}
        for part in sorted({part for part, _ in origins.values()}):
            try:
                self._rows[part] = PartRows(work, part)
            except FAULTS as error:
                log.warning("%s", damage(work, part, error))
        self._origins = {k: origin for k, origin in origins.items() if origin[0] in self._rows}
        self._lock = threading.Lock()

    def __contains__(self, photograph: str) -> bool:
        return photograph in self._origins

    def rows(self, photograph: str) -> tuple[Row, list[Row]]:
        """The catalogue row and the manifest rows of a photograph, under its name in this build."""
        part, name = self._origins[photograph]
        with self._lock:
            entry, rows = self._rows[part].rows(name)
        renamed = [row | {"image_path": photograph} for row in rows]
        return entry | {"path": photograph}, renamed


class PartRows:
    """Random access to the rows of one part; holds a few row groups in memory."""

    def __init__(self, work: StoragePath, name: str):
        """Raises one of FAULTS: the part is damaged."""
        _, catalogue = read_part(work, name, in_full=True)
        self._catalogue = {row["path"]: row for row in catalogue.to_pylist()}
        patches, _ = part_files(work, name)
        self._file = pq.ParquetFile(
            patches.key, filesystem=patches.fs, page_checksum_verification=True
        )
        owners = self._file.read(columns=["image_path"])["image_path"].to_pylist()
        self._indices: dict[str, list[int]] = {}
        for index, owner in enumerate(owners):
            self._indices.setdefault(owner, []).append(index)
        self._starts = [0]  # index of the first row of each row group
        for number in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(number).num_rows)
        self._groups: OrderedDict[int, list[Row]] = OrderedDict()

    def rows(self, photograph: str) -> tuple[Row, list[Row]]:
        """The catalogue row and the manifest rows of a photograph of this part."""
        indices = self._indices.get(photograph, [])
        return self._catalogue[photograph], [self._row(index) for index in indices]

    def _row(self, index: int) -> Row:
        number = next(i for i, start in enumerate(self._starts[1:]) if index < start)
        if number not in self._groups:
            self._groups[number] = self._file.read_row_group(number).to_pylist()
            if len(self._groups) > _GROUPS:
                self._groups.popitem(last=False)
        return self._groups[number][index - self._starts[number]]
