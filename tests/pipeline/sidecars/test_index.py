"""Near-duplicates of what grows and shrinks are those of the whole, computed from scratch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.sidecars import index, kept
from pipeline.sidecars.index import ITEMS, empty, updated
from pipeline.storage import StoragePath, read_table
from schemas.catalogue import IMAGES

GIVEN = pa.schema([field for field in ITEMS if field.name != "owner"])


def drawn(rng: np.random.Generator, pool: np.ndarray, n: int) -> pa.Table:
    """Items whose hashes are those of a small pool, with a few bits turned; some are equal."""
    hashes = rng.choice(pool, n)
    for _ in range(rng.integers(0, 4)):
        turned = np.uint64(1) << rng.integers(0, 64, n, dtype=np.uint64)
        hashes = hashes ^ np.where(rng.random(n) < 0.4, turned, np.uint64(0))
    names = [f"{number:06x}" for number in rng.choice(10**6, n, replace=False)]
    columns = {"hash": hashes, "first": rng.integers(0, 4, n), "name": names, "file": [0] * n}
    return pa.table(columns).cast(GIVEN)


def by_definition(table: pa.Table, bits: int) -> list[tuple[str, str, int]]:
    """One by one: the nearest kept item that is preferred, of several the most preferred."""
    rows = sorted(table.to_pylist(), key=lambda row: (row["first"], row["name"]))
    kept_rows, found = list[dict[str, Any]](), list[tuple[str, str, int]]()
    for row in rows:
        near = [((row["hash"] ^ other["hash"]).bit_count(), other) for other in kept_rows]
        near = [(distance, other) for distance, other in near if distance <= bits]
        if near:
            distance, other = min(near, key=lambda pair: pair[0])
            found.append((row["name"], other["name"], distance))
        else:
            kept_rows.append(row)
    return found


@pytest.mark.parametrize("few", [2.0, index.FEW])
def test_additions_and_removals_give_what_the_definition_says(
    few: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains, clusters, equal hashes, hash 0; an item leaves that others were duplicates of."""
    monkeypatch.setattr(index, "FEW", few)  # 2: never all at once
    sizes: Sequence[int] = (0, 1, 5, 40)
    seen = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        pool = rng.integers(0, 2**64, int(rng.integers(1, 20)), dtype=np.uint64)
        pool[0] = pool[0] if seed % 5 else 0
        bits, items = (3, 4, 6)[seed % 3], empty()
        for _ in range(5):
            gone = rng.random(len(items.table)) < rng.choice([0, 0.02, 0.3])
            items = updated(items, gone, drawn(rng, pool, int(rng.choice(sizes))), bits)
            found = items.duplicates("lr").to_pylist()
            expected = by_definition(items.table, bits)
            assert [(row["id"], row["kept"], row["distance"]) for row in found] == expected
            seen += len(expected)
    assert seen > 1000


def test_few_new_hashes_are_compared_with_few_old_ones() -> None:
    """A hundred times as many old ones: about as many comparisons."""
    compared = []
    for n in (2_000, 200_000):
        rng = np.random.default_rng(n)
        nodes = np.unique(rng.integers(0, 2**64, n, dtype=np.uint64))
        table = pa.table(
            {"hash": nodes, "first": nodes.astype(np.int64) * 0, "name": nodes.astype(str)}
        )
        change = index._Change(table, np.arange(len(nodes)), nodes, 4)
        sizes = []
        for value in rng.integers(0, 2**63, 50).tolist():
            for start, stop, _, ends in change._buckets:
                band = value >> start & 2 ** (stop - start) - 1
                sizes.append(int(ends[band] - (ends[band - 1] if band else 0)))
        compared.append(np.mean(sizes))
    assert compared[1] < 200_000 / 2**11


def test_what_is_remembered_is_used_and_damage_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = StoragePath(str(tmp_path))
    read = list[str]()

    def noted(path: StoragePath, columns: list[str]) -> pa.Table:
        read.append(path.name)
        return read_table(path, columns)

    monkeypatch.setattr(kept, "read_table", noted)
    parts = {}
    for number in range(3):
        rows = [
            {"patch_id": f"{number}{n}{role}", "role": role, "rank": n, "phash": f"{n * 7:016x}"}
            for role in ("lr", "hr")
            for n in range(4)
        ]
        path = tmp_path / f"part-{number}.parquet"
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        parts[path.name] = StoragePath(str(path))
    photographs = IMAGES.empty_table()
    whole = kept.near_duplicates(StoragePath(str(tmp_path / "fresh")), photographs, parts)
    one = {name: parts[name] for name in sorted(parts)[:1]}
    kept.near_duplicates(work, photographs, one)
    read.clear()
    assert kept.near_duplicates(work, photographs, parts).equals(whole) and len(whole) > 8
    assert sorted(read) == ["part-1.parquet", "part-2.parquet"]
    read.clear()
    assert kept.near_duplicates(work, photographs, parts).equals(whole) and not read
    memory = tmp_path / "near-lr.parquet"
    content = memory.read_bytes()
    for damaged in (content[:-40], content[:90] + b"?" + content[91:], b""):
        memory.write_bytes(damaged)
        caplog.clear()
        assert kept.near_duplicates(work, photographs, parts).equals(whole)
        assert "near-lr.parquet: damaged" in caplog.text and memory.read_bytes() == content
    memory.unlink()
    assert kept.near_duplicates(work, photographs, parts).equals(whole)
