"""Near-duplicates: all of them and no others, in bounded time, and the same however built."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import BuildConfig
from pipeline.sidecars.duplicates import MAX_BITS, _near_pairs, find_duplicates, first_alike
from schemas.catalogue import DUPLICATES, IMAGES
from tests.conftest import run_stages


def hashes(n: int, seed: int = 0) -> np.ndarray:
    """Random ones; a tenth of them are others with up to eight bits turned, some are repeated."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 2**64, n, dtype=np.uint64)
    copies = found[: n // 10].copy()
    for _ in range(8):
        turned = np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
        copies ^= np.where(rng.random(len(copies)) < 0.5, turned, np.uint64(0))
    found[-len(copies) :] = copies
    return rng.permutation(found)


def every_pair(found: np.ndarray, most: int) -> set[tuple[int, int]]:
    """By comparing all with all."""
    pairs = set()
    for i in range(len(found) - 1):
        near = np.flatnonzero(np.bitwise_count(found[i + 1 :] ^ found[i]) <= most)
        pairs.update((i, i + 1 + int(j)) for j in near)
    return pairs


def test_many_hashes_against_all_with_all() -> None:
    found = np.unique(hashes(30_000))
    earlier, later, bits = _near_pairs(found, MAX_BITS["lr"])
    assert set(zip(earlier, later, strict=True)) == every_pair(found, MAX_BITS["lr"])
    assert len(earlier) > 1500 and len(set(zip(earlier, later, strict=True))) == len(earlier)
    differing = np.bitwise_count(found[earlier] ^ found[later])
    assert differing.tolist() == bits and min(bits) >= 1


@pytest.mark.parametrize("most", [0, 1, 3, 6, 10])
@pytest.mark.parametrize("seed", range(3))
def test_who_is_kept_is_decided_in_order(most: int, seed: int) -> None:
    found = hashes(600, seed)
    # Chains, in which each is near the one before it and not the one before that.
    chain = found[:40, None] ^ (np.uint64(4) ** np.arange(16, dtype=np.uint64) - np.uint64(1))
    found = np.concatenate([found, found[:50], np.repeat(found[3], 9), chain.ravel()])
    expected: list[int] = []
    for i, value in enumerate(found):
        kept = [j for j in range(i) if expected[j] == j]
        bits = np.bitwise_count(found[kept] ^ value).tolist()
        near = [(b, j) for b, j in zip(bits, kept, strict=True) if b <= most]
        expected.append(min(near)[1] if near else i)
    result = first_alike(found, most)
    assert result.tolist() == expected
    left = found[result == np.arange(len(found))]
    assert not every_pair(left, most)  # nothing that is left looks like anything else that is


def test_hashes_that_are_all_alike_are_no_trouble() -> None:
    assert set(first_alike(np.full(100_000, 7, np.uint64), 4).tolist()) == {0}
    assert first_alike(np.empty(0, np.uint64), 4).tolist() == []


def catalogue(rows: list[tuple[str, int, str | None, str]]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"image_id": name, "path": name, "width": side, "height": side, "phash": phash,
             "status": status}
            for name, side, phash, status in rows
        ],
        schema=IMAGES,
    )  # fmt: skip


def test_the_largest_photograph_is_kept_and_roles_are_apart() -> None:
    photographs = catalogue(
        [
            ("a", 300, "00000000000000ff", "ok"),
            ("b", 900, "00000000000000fe", "ok"),
            ("c", 300, "0f0f0f0f0f0f0f0f", "ok"),
            ("d", 300, None, "ok"),
            ("e", 300, None, "no_patches"),
            ("f", 990, "00000000000000ff", "duplicate"),
        ]
    )
    patches = pa.table(
        {
            "patch_id": ["p", "q", "r", "s"],
            "role": ["lr", "hr", "lr", "lr"],
            "rank": [1, 0, 0, 2],
            "phash": ["f0f0f0f0f0f0f0f0", "f0f0f0f0f0f0f0f0", "f0f0f0f0f0f0f0f3", None],
        }
    )
    table = find_duplicates(photographs, patches)
    assert table.schema.equals(DUPLICATES)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("photograph", "a", "b", 1), ("lr", "p", "r", 2)
    ]  # fmt: skip
    assert not len(find_duplicates(photographs.drop(["phash"]), patches.drop(["phash"])))


def test_builds_in_one_go_and_in_steps_agree(photographs: Path, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()

    def add(name: str) -> None:
        shutil.copy2(photographs / name, album)
        picture = Image.open(album / name)
        picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(
            album / f"0-{name}", quality=90
        )

    def build(out: str) -> pa.Table:
        config = BuildConfig(
            images=[str(album)], out=tmp_path / out / "patches.parquet", profile="test", k=2,
            shard_size=2,
        )  # fmt: skip
        run_stages(config)
        return pq.read_table(tmp_path / out / "duplicates.parquet")

    for name in ("china.jpg", "coffee.png", "flower.jpg"):
        add(name)
        grown = build("steps")
    assert grown.equals(build("fresh"))
    looks_alike = [row for row in grown.to_pylist() if row["kind"] == "photograph"]
    assert len(looks_alike) == 3 and all(row["distance"] <= 6 for row in looks_alike)
    names = {
        row["image_id"]: row["path"]
        for row in pq.read_table(tmp_path / "steps" / "images.parquet").to_pylist()
    }
    for row in looks_alike:
        assert names[row["id"]] == f"0-{names[row['kept']]}"
