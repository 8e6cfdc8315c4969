"""Parts: the Parquet files in the work folder from which a manifest is published.

A part is a pair of files. `part-x.parquet` holds rows of the manifest, `part-x.images.parquet` rows
of the catalogue and the state of every photograph it was made from. The second is written last: if
it exists, the part is complete. Parts never change; x is a fingerprint of everything that
determines their rows.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.pictures.formats.extras import installed_extras
from pipeline.build.fingerprint import Identities, fingerprint
from pipeline.inputs.photographs import Found, State
from pipeline.storage import StoragePath, read_table, scratch
from schemas.manifest import Row
from schemas.parquet import decoded_metadata, encoded_metadata

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


def part_name(identities: Identities, catalogue: Iterable[Row]) -> str:
    """The name of a part: its stages, and the content, name and status of each photograph."""
    photographs = [[row["path"], row["image_id"], row["status"]] for row in catalogue]
    return f"part-{fingerprint(identities.rows, photographs)}"


def part_files(work: StoragePath, name: str) -> tuple[StoragePath, StoragePath]:
    """The files of a part: patches and catalogue rows."""
    return work / f"{name}.parquet", work / f"{name}.images.parquet"


def part_metadata(identities: Identities, shard: Shard) -> dict[str, Any]:
    """The metadata of a part's catalogue file, which `read_parts` reads back."""
    return {
        "selection": identities.selection,
        "rows": identities.rows,
        "states": {photograph.name: photograph.state for photograph in shard.photographs},
        "extras": installed_extras(),
    }


def update_states(work: StoragePath, name: str, states: Mapping[str, State]) -> None:
    """Record new states of photographs whose bytes are the same, so that a rerun trusts them."""
    path = part_files(work, name)[1]
    table = read_table(path)
    about = decoded_metadata(table.schema)
    about["states"] = about["states"] | dict(states)
    with scratch(work, path.name) as temporary:
        encoded = encoded_metadata(table.schema, about)
        pq.write_table(table.replace_schema_metadata(encoded), temporary)
        path.take(temporary)


def read_parts(work: StoragePath) -> list[Part]:
    """All finished parts in the work folder, of any parameters, sorted by name."""
    ending = ".images.parquet"
    names = [name.removesuffix(ending) for name in work.names() if name.endswith(ending)]
    with ThreadPoolExecutor(8) as executor:
        parts = executor.map(lambda name: _read_part(work, name), names)
        return [part for part in parts if part]


def _read_part(work: StoragePath, name: str) -> Part | None:
    try:
        table = read_table(part_files(work, name)[1], ["path", "status", "image_id"])
        about = decoded_metadata(table.schema)
        paths = table["path"].to_pylist()
        status = dict(zip(paths, table["status"].to_pylist(), strict=True))
        image_ids = dict(zip(paths, table["image_id"].to_pylist(), strict=True))
        states = about["states"]
        again = retried(about)
        return Part(name, about["selection"], about["rows"], states, status, image_ids, again)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None  # damaged, or not written by a build: its photographs are done again


class ReusableRows:
    """Rows of finished parts by photograph, whose patches need no reading or selecting again.

    Safe for many threads.
    """

    def __init__(self, work: StoragePath, origins: Mapping[str, tuple[str, str]]):
        """origins: photograph's name -> the part that holds its rows, and its name there."""
        self._origins = origins
        self._rows = {part: PartRows(work, part) for part, _ in set(origins.values())}
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
        patches, catalogue = part_files(work, name)
        self._catalogue = {row["path"]: row for row in read_table(catalogue).to_pylist()}
        self._file = pq.ParquetFile(patches.key, filesystem=patches.fs)
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
