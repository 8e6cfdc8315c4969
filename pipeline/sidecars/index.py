"""Near-duplicates of a manifest that grows: only what changed is compared with the rest.

`Items` remembers every hash of the last build and which hash it duplicates, so that this one looks
for neighbours of new, gone and replaced hashes alone. The result is that of `first_alike` from
scratch, exactly: whether a hash is kept depends on the kept ones among its preferred neighbours, so
that a change is passed on, in the order of preference, as far as something changes and no further.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sidecars.duplicates import bands, first_alike
from schemas.catalogue import DUPLICATES

FEW = 0.1  # share of the hashes up to which a change is passed on; beyond it all are compared
ITEMS = pa.schema(
    [
        ("hash", pa.uint64()),
        ("first", pa.int64()),  # the item with less of it is preferred, and among equals
        ("name", pa.string()),  # the one whose name comes first
        ("file", pa.int32()),  # number of the part that holds it
        ("owner", pa.uint64()),  # the hash that it duplicates, or its own
    ]
)
PREFERENCE = ("first", "name")


@dataclass(frozen=True)
class Items:
    """Items of one kind, sorted by hash, and those of equal hashes by preference.

    table: columns of ITEMS.
    """

    table: pa.Table

    @property
    def hashes(self) -> np.ndarray:
        """n uint64."""
        return _numpy(self.table, "hash")

    def duplicates(self, kind: str) -> pa.Table:
        """Rows of the table DUPLICATES, in the order of preference; names are their ids."""
        hashes, owners = self.hashes, _numpy(self.table, "owner")
        starts = _starts(hashes)
        kept = np.flatnonzero(starts)[np.searchsorted(hashes[starts], owners)]
        alike = np.flatnonzero(kept != np.arange(len(hashes)))
        found = self.table.take(pa.array(alike))
        columns = {
            "kind": pa.array([kind] * len(alike), pa.string()),
            "id": found["name"],
            "kept": self.table["name"].take(pa.array(kept[alike])),
            "distance": pa.array(np.bitwise_count(hashes[alike] ^ owners[alike]), pa.int32()),
        }
        order = _sorted(found, *PREFERENCE)
        return pa.table(columns).take(pa.array(order)).cast(DUPLICATES)


def empty() -> Items:
    """Nothing is known yet."""
    return Items(ITEMS.empty_table())


def updated(old: Items, gone: np.ndarray, new: pa.Table, max_bits: int) -> Items:
    """The items after a change.

    gone: for each old item whether it left. new: columns of ITEMS but `owner`, in any order.
    """
    if not gone.any() and not len(new):
        return old
    was_first = _starts(old.hashes)
    table, is_old_first = _merged(old.table, was_first, gone, new)
    hashes = _numpy(table, "hash")
    starts = np.flatnonzero(_starts(hashes))
    nodes = hashes[starts]  # each hash once
    lost = old.hashes[was_first & gone]
    changed = np.union1d(lost, nodes[~is_old_first[starts]])
    if len(changed) > FEW * len(nodes):
        order = _sorted(table.take(pa.array(starts)), *PREFERENCE)
        owners = np.empty_like(nodes)
        owners[order] = nodes[order][first_alike(nodes[order], max_bits)]
    else:
        before = old.hashes[was_first], _numpy(old.table, "owner")[was_first]
        owners = _Change(table, starts, nodes, max_bits).owners(*before, changed)
    counts = np.diff(np.append(starts, len(hashes)))
    return Items(table.append_column("owner", pa.array(np.repeat(owners, counts))))


def _merged(
    old: pa.Table, was_first: np.ndarray, gone: np.ndarray, new: pa.Table
) -> tuple[pa.Table, np.ndarray]:
    """What stays and what is new, sorted; for each whether it was the first of its hash before."""
    stays = np.flatnonzero(~gone)
    names = [name for name in ITEMS.names if name != "owner"]
    new = new.select(names).take(pa.array(_sorted(new, "hash", *PREFERENCE)))
    both = pa.concat_tables([old.select(names).take(pa.array(stays)), new]).combine_chunks()
    was = np.concatenate([was_first[stays], np.zeros(len(new), bool)])
    hashes = _numpy(both, "hash")
    order = np.argsort(hashes, kind="stable")  # two sorted runs are merged
    hashes, is_new = hashes[order], order >= len(stays)
    # New ones come after old ones of the same hash, until these few are sorted.
    mixed = np.isin(hashes, hashes[1:][is_new[1:] & ~is_new[:-1] & ~_starts(hashes)[1:]])
    rows = both.take(pa.array(order[mixed]))
    order[mixed] = order[mixed][_sorted(rows, "hash", *PREFERENCE)]
    return both.take(pa.array(order)), was[order]


class _Change:
    """Passes changes on, from hash to hash. Nodes are numbers of different hashes."""

    def __init__(self, table: pa.Table, starts: np.ndarray, nodes: np.ndarray, max_bits: int):
        self._first, self._starts = _numpy(table, "first"), starts
        self._names, self._nodes, self._bits = table["name"].combine_chunks(), nodes, max_bits
        self._buckets = []
        for start, stop in bands(max_bits):
            band = _band(nodes, start, stop)
            # Bands of few bits: the sort is one of radix, which is linear.
            order = np.argsort(band, kind="stable")
            ends = np.cumsum(np.bincount(band, minlength=2 ** (stop - start)))
            self._buckets.append((start, stop, order, ends))

    def near(self, value: int) -> tuple[np.ndarray, np.ndarray]:
        """The nodes within the bits of a hash, but for its own, and how many bits they differ."""
        found = []
        for start, stop, order, ends in self._buckets:
            band = value >> start & 2 ** (stop - start) - 1
            found.append(order[ends[band - 1] if band else 0 : ends[band]])
        there = np.concatenate(found)
        bits = np.bitwise_count(self._nodes[there] ^ np.uint64(value))
        is_near = (bits <= self._bits) & (bits > 0)
        there, first = np.unique(there[is_near], return_index=True)
        return there, bits[is_near][first]

    def key(self, node: int) -> tuple[int, str]:
        """What orders nodes by preference."""
        at = self._starts[node]
        return int(self._first[at]), self._names[int(at)].as_py()

    def owners(
        self, old_nodes: np.ndarray, old_owners: np.ndarray, changed: np.ndarray
    ) -> np.ndarray:
        """The owner of each node. changed: hashes that came, left, or have another first item."""
        owners = np.zeros_like(self._nodes)  # of those that come; they are among `changed`
        at = np.searchsorted(self._nodes, old_nodes)
        at = np.minimum(at, max(len(self._nodes) - 1, 0))
        stays = self._nodes[at] == old_nodes if len(self._nodes) else np.zeros(len(at), bool)
        owners[at[stays]] = old_owners[stays]
        known = np.zeros(len(self._nodes), bool)
        known[at[stays]] = True
        waiting, queued = list[tuple[tuple[int, str], int]](), set[int]()

        def push(node: int) -> None:
            if node not in queued:
                queued.add(node)
                heapq.heappush(waiting, (self.key(node), node))

        was_kept = dict(_kept(old_nodes, old_owners, changed))
        for value in changed.tolist():
            node = int(np.searchsorted(self._nodes, np.uint64(value)))
            if node < len(self._nodes) and self._nodes[node] == value:
                push(node)
            if was_kept.get(value):
                for other in self.near(value)[0].tolist():
                    push(other)
        while waiting:
            key, node = heapq.heappop(waiting)
            value = int(self._nodes[node])
            near, bits = self.near(value)
            kept = owners[near] == self._nodes[near]
            preferred = [
                (b, other_key, n)
                for n, b in zip(near[kept].tolist(), bits[kept].tolist(), strict=True)
                if (other_key := self.key(n)) < key
            ]
            before = bool(known[node]) and int(owners[node]) == value
            owners[node] = self._nodes[min(preferred)[2]] if preferred else value
            if before != (not preferred):
                for other in near.tolist():
                    if self.key(other) > key:
                        push(other)
        return owners


def _kept(nodes: np.ndarray, owners: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, bool]]:
    """For those of the wanted hashes that are among the nodes, whether they were kept."""
    is_in = np.isin(nodes, wanted)
    yield from zip(nodes[is_in].tolist(), (nodes[is_in] == owners[is_in]).tolist(), strict=True)


def _band(hashes: np.ndarray, start: int, stop: int) -> np.ndarray:
    return (hashes >> np.uint64(start) & np.uint64(2 ** (stop - start) - 1)).astype(np.uint16)


def _starts(hashes: np.ndarray) -> np.ndarray:
    """Whether each of sorted hashes is the first of its kind."""
    result = np.ones(len(hashes), bool)
    result[1:] = hashes[1:] != hashes[:-1]
    return result


def _sorted(table: pa.Table, *columns: str) -> np.ndarray:
    """The order of rows by some columns."""
    order: np.ndarray = pc.sort_indices(table, [(name, "ascending") for name in columns]).to_numpy()
    return order


def _numpy(table: pa.Table, column: str) -> np.ndarray:
    result: np.ndarray = table[column].combine_chunks().to_numpy(zero_copy_only=False)
    return result
