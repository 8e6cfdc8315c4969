"""What is done already, and what is left to do.

A part is a pair of files in the work folder: `part-x.parquet` (rows of the manifest) and
`part-x.images.parquet` (rows of the catalogue, and the state of every file it was made from), the
second written last: where it stands, the part is complete. Parts are never changed. x is a
fingerprint of all that determines the rows: the stages (see identity.py) and the photographs.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.build.fingerprint import Identities, fingerprint
from pipeline.stages.images import Found
from pipeline.storage import Place, read_table
from schemas.manifest import Row
from schemas.parquet import decoded_metadata

RETRIED = {"failed", "unreadable"}  # what a rerun tries again: the reason may have passed


@dataclass(frozen=True)
class Shard:
    """Photographs that become one part together."""

    name: str
    photographs: tuple[Found, ...]
    earlier: dict[str, str] = field(default_factory=dict)  # photograph's name -> part with its rows


@dataclass(frozen=True)
class Part:
    """A finished part: what it was made with and from."""

    name: str
    selection: str  # Identities.selection
    rows: str  # Identities.rows
    states: dict[str, list[int]]  # photograph's name -> size and time of change
    status: dict[str, str]

    def done(self) -> dict[str, list[int]]:
        """Those of its photographs that need no other attempt."""
        return {name: state for name, state in self.states.items() if not self.retried(name)}

    def retried(self, name: str) -> bool:
        """Whether a rerun tries this photograph again."""
        return self.status.get(name) in RETRIED


@dataclass(frozen=True)
class Plan:
    """A build as it stands: parts that are finished and shards that are to be done."""

    finished: tuple[str, ...]
    to_do: tuple[Shard, ...]
    photographs: int


def plan(work: Place, found: Sequence[Found], identities: Identities, shard_size: int) -> Plan:
    """Keep the finished parts whose photographs are all still as they were; cut the rest anew.

    A photograph counts as unchanged while its name, size and time of change are the same. So a
    rerun after a kill redoes only what was under way, and new photographs cost only themselves. A
    part that has to be made again keeps its photographs together: shards are not reshuffled.
    """
    states = {photograph.name: state_of(photograph) for photograph in found}
    finished, outdated, covered = [], [], set[str]()
    for part in read_parts(work):
        done = part.done()
        current = all(states.get(name) == state for name, state in done.items())
        if done and current and part.rows == identities.rows and not covered & done.keys():
            finished.append(part.name)
            covered |= done.keys()
        else:
            outdated.append(part)
    rest = {photograph.name: photograph for photograph in found if photograph.name not in covered}
    earlier = _rows_at_hand(outdated, states, identities.selection)
    shards: list[Shard] = []
    for names in [*(part.done() for part in outdated), list(rest)]:
        group = [rest.pop(name) for name in names if name in rest]
        cuts = (group[i : i + shard_size] for i in range(0, len(group), shard_size))
        shards.extend(_shard(cut, earlier) for cut in cuts)
    return Plan(tuple(finished), tuple(shards), len(found))


def _rows_at_hand(
    parts: Sequence[Part], states: dict[str, list[int]], selection: str
) -> dict[str, str]:
    """Photographs whose patches stand in an earlier part, chosen as this build would choose."""
    return {
        name: part.name
        for part in parts
        if part.selection == selection
        for name, state in part.done().items()
        if states.get(name) == state
    }


def _shard(photographs: Sequence[Found], earlier: dict[str, str]) -> Shard:
    states = [[photograph.name, *state_of(photograph)] for photograph in photographs]
    at_hand = {p.name: earlier[p.name] for p in photographs if p.name in earlier}
    return Shard(f"shard-{fingerprint(states)}", tuple(photographs), at_hand)


def state_of(photograph: Found) -> list[int]:
    """What tells, without reading it, that a file was changed."""
    return [photograph.size, photograph.modified]


def part_name(identities: Identities, catalogue: Iterable[Row]) -> str:
    """The fingerprint of a part: its stages, and each photograph's content, name and outcome."""
    photographs = [[row["path"], row["image_id"], row["status"]] for row in catalogue]
    return f"part-{fingerprint(identities.rows, photographs)}"


def part_files(work: Place, name: str) -> tuple[Place, Place]:
    """Where the patches and the catalogue rows of a part stand."""
    return work / f"{name}.parquet", work / f"{name}.images.parquet"


def part_metadata(identities: Identities, shard: Shard) -> dict[str, Any]:
    """What a part's catalogue says of how and from what it was made."""
    return {
        "selection": identities.selection,
        "rows": identities.rows,
        "states": {photograph.name: state_of(photograph) for photograph in shard.photographs},
    }


def read_parts(work: Place) -> list[Part]:
    """All finished parts in the work folder, whatever they were made with, by name."""
    ending = ".images.parquet"
    names = [name.removesuffix(ending) for name in work.names() if name.endswith(ending)]
    with ThreadPoolExecutor(8) as executor:
        parts = executor.map(lambda name: _read_part(work, name), names)
        return [part for part in parts if part]


def _read_part(work: Place, name: str) -> Part | None:
    try:
        table = read_table(part_files(work, name)[1], ["path", "status"])
        about = decoded_metadata(table.schema)
        status = dict(zip(table["path"].to_pylist(), table["status"].to_pylist(), strict=True))
        return Part(name, about["selection"], about["rows"], about["states"], status)
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None  # not ours, or damaged: what it held is made again
