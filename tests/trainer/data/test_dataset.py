"""From a manifest to batches: what meets, how it is turned, and that it is always the same."""

import dataclasses
from collections import Counter
from itertools import chain
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from schemas.manifest import PATCHES, ManifestError, Role, open_manifest
from schemas.parquet import ROW_GROUP
from tests.support.bad_rows import bad_pictures, with_pictures
from tests.support.parts import write_part
from trainer.config import Degradation, Pairing
from trainer.data import dataset as module
from trainer.data.dataset import COLUMNS, Batch, Patches, flip_and_rotate


def patches(
    manifest: Path,
    seed: int = 0,
    degradation: Degradation = "none",
    pairing: Pairing = "photograph",
) -> Patches:
    return Patches(open_manifest(manifest, COLUMNS), seed, degradation, pairing)


def table(manifest: Path) -> list[dict[str, object]]:
    return [row for f in open_manifest(manifest).files for row in pq.read_table(f).to_pylist()]


def together(slices: list[Batch]) -> Batch:
    """One batch of the slices of several processes."""
    names = [column.name for column in dataclasses.fields(Batch)]
    columns = zip(*([getattr(part, n) for n in names] for part in slices), strict=True)
    return Batch(*(torch.cat(c) if torch.is_tensor(c[0]) else [*chain(*c)] for c in columns))


def equal(a: Batch, b: Batch) -> bool:
    pixels = torch.equal(a.lr, b.lr) and torch.equal(a.hr, b.hr)
    return pixels and dataclasses.astuple(a)[2:] == dataclasses.astuple(b)[2:]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 photographs with 8 patches of each role, without pixels, in the pipeline's order."""
    path = tmp_path_factory.mktemp("many") / "patches.parquet"
    with write_part(path / "part.parquet", PATCHES, {}) as write:
        for photograph in range(1200):
            write(
                {"image_id": f"{photograph}", "role": role, "size": size, "caption": "a word"}
                for role, size in (("lr", 56), ("hr", 224))
                for _ in range(8)
            )
    return path


def test_an_epoch_has_every_lr_patch_once_with_one_of_its_own_photograph(manifest: Path) -> None:
    data, rows = patches(manifest), table(manifest)
    for epoch in range(3):
        pairs = data.epoch(epoch)
        assert sorted(pairs[:, 0]) == [i for i, row in enumerate(rows) if row["role"] == "lr"]
        for lr, hr in pairs:
            assert rows[hr]["role"] == "hr" and rows[lr]["image_id"] == rows[hr]["image_id"]
    orders = [data.epoch(e)[:, 0].tolist() for e in range(3)]
    assert orders[0] != orders[1] != orders[2]
    photographs = [rows[i]["image_id"] for i in orders[0]]
    assert photographs != sorted(photographs)


def test_every_hr_patch_of_a_photograph_is_met_as_often_as_the_others(many: Path) -> None:
    met = Counter(patches(many).epoch(0)[:, 1].tolist())
    assert len(met) == 9600 and set(met.values()) == {1}


def test_a_batch_holds_photographs_from_all_over_its_window(many: Path) -> None:
    pairs = patches(many).epoch(0)
    batches = pairs[: len(pairs) // 16 * 16, 0].reshape(-1, 16)
    photographs, groups = (
        np.array([len(set(rows.tolist())) for rows in batches // unit]) for unit in (16, ROW_GROUP)
    )
    # Uniformly random rows of the whole manifest: 15.9 photographs, 14.6 of the 75 row groups.
    assert photographs.min() >= 15 and photographs.mean() > 15.98
    assert groups.min() >= 9 and groups.mean() > 14.8
    assert abs(np.corrcoef(pairs[:-1, 0], pairs[1:, 0])[0, 1]) < 0.1
    # Three windows, so that within an epoch a row group is used up in about a third of it.
    first = np.flatnonzero(pairs[:, 0] // ROW_GROUP == 0)
    assert 2500 < np.ptp(first) < 3600


def test_photographs_meet_others_in_every_epoch(many: Path) -> None:
    data = patches(many)
    met = [set(), set()]
    for epoch, others in enumerate(met):
        pairs = data.epoch(epoch)
        for rows in pairs[: len(pairs) // 16 * 16, 0].reshape(-1, 16) // 16:
            if 0 in rows:
                others.update(rows.tolist())
    assert all(100 < len(others) < 122 for others in met)  # 8 batches of 15 others
    assert len(met[0] & met[1]) < 30


def test_random_pairs_ignore_photographs_and_use_all_hr_patches(many: Path) -> None:
    pairs = patches(many, pairing="random").epoch(0)
    assert (pairs[:, 0] // 16 == pairs[:, 1] // 16).mean() < 0.01
    assert len(set(pairs[:, 0].tolist())) == len(pairs)
    assert len(set(pairs[:, 1].tolist())) > 0.95 * len(pairs)


def test_batches_hold_the_manifests_pictures_and_captions(manifest: Path) -> None:
    data, rows = patches(manifest), table(manifest)
    batch = data.batch(1, 5)
    assert batch.lr.shape == (5, 3, 56, 56) and batch.hr.shape == (5, 3, 224, 224)
    pairs = data.epoch(0)[5:10]
    for pictures, captions, numbers in (
        (batch.lr, batch.lr_captions, pairs[:, 0]),
        (batch.hr, batch.hr_captions, pairs[:, 1]),
    ):
        for picture, caption, number in zip(pictures, captions, numbers, strict=True):
            row = rows[number]
            content = np.frombuffer(row["image"]["bytes"], np.uint8)  # type: ignore[index]
            stored = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
            turned = [flip_and_rotate(stored, i).copy() for i in range(8)]
            candidates = [torch.from_numpy(t).permute(2, 0, 1) / 255 for t in turned]
            assert sum(torch.equal(picture, t) for t in candidates) == 1
            assert caption == row["caption"]
    assert batch.lr_rows == pairs[:, 0].tolist() and batch.hr_rows == pairs[:, 1].tolist()


def test_the_eight_symmetries_of_a_square() -> None:
    square = np.arange(9).reshape(3, 3, 1)
    assert len({flip_and_rotate(square, i).tobytes() for i in range(8)}) == 8


@pytest.mark.parametrize("role", ["lr", "hr"])
def test_patches_of_both_roles_come_in_all_eight_symmetries(manifest: Path, role: Role) -> None:
    data = patches(manifest)
    row = int(data.epoch(0)[0, int(role == "hr")])
    seen = {data._patches([row], role, range(p, p + 1), [])[0].numpy().tobytes() for p in range(60)}
    assert len(seen) == 8


@pytest.mark.parametrize("degradation", ["none", "realesrgan"])
def test_batches_depend_on_seed_and_step_alone(manifest: Path, degradation: Degradation) -> None:
    whole = list(patches(manifest, degradation=degradation).batches(0, 12, 5, workers=3))
    later = list(patches(manifest, degradation=degradation).batches(7, 12, 5, workers=1))
    assert len(later) == 5
    assert all(equal(a, b) for a, b in zip(whole[7:], later, strict=True))
    other = list(patches(manifest, 1, degradation).batches(0, 12, 5, workers=1))
    assert [b.lr_rows for b in other] != [b.lr_rows for b in whole]


@pytest.mark.parametrize("world", [2, 3])
def test_slices_of_several_processes_are_the_batch(manifest: Path, world: int) -> None:
    whole = list(patches(manifest, degradation="realesrgan").batches(3, 6, 8, workers=2))
    parts = [
        list(patches(manifest, degradation="realesrgan").batches(3, 6, 8, 2, rank, world))
        for rank in range(world)
    ]
    for batch, *slices in zip(whole, *parts, strict=True):
        assert max(len(part.lr) for part in slices) - min(len(part.lr) for part in slices) <= 1
        assert equal(batch, together(slices))


def test_a_process_decodes_only_its_slice(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda c, role: decoded.append(role) or decode(c, role))  # type: ignore[func-returns-value]
    patches(manifest).batch(2, 8, rank=1, world=2)
    assert sorted(decoded) == ["hr"] * 4 + ["lr"] * 4


def test_degradation_touches_lr_patches_alone(manifest: Path) -> None:
    clean, degraded = (patches(manifest, degradation=d).batch(0, 6) for d in ("none", "realesrgan"))
    assert torch.equal(clean.hr, degraded.hr) and clean.lr_rows == degraded.lr_rows
    assert degraded.lr.shape == clean.lr.shape and degraded.lr.dtype == clean.lr.dtype
    differences = (clean.lr - degraded.lr).abs().mean((1, 2, 3))
    assert (differences > 0.005).all()
    # Turned alike first, then degraded: the same picture is still the nearest of the eight.
    for picture, blurred in zip(clean.lr.numpy(), degraded.lr.numpy(), strict=True):
        turns = [
            flip_and_rotate(picture.transpose(1, 2, 0), i).transpose(2, 0, 1) for i in range(8)
        ]
        errors = [
            np.abs(cv2.blur(t.mean(0), (7, 7)) - cv2.blur(blurred.mean(0), (7, 7))).mean()
            for t in turns
        ]
        assert errors[0] <= min(errors) + 0.01


def copy(manifest: Path, where: str, target: Path) -> Path:
    duckdb.sql(
        f"COPY (SELECT * FROM '{manifest}/*.parquet' WHERE {where}) TO '{target}' (FORMAT parquet)"
    )
    return target


def test_a_subset_written_by_sql_is_a_manifest(manifest: Path, tmp_path: Path) -> None:
    texture = sorted(float(row["texture"]) for row in table(manifest))[20]  # type: ignore[arg-type]
    subset = copy(manifest, f"texture > {texture}", tmp_path / "subset.parquet")
    data = patches(subset)
    assert 0 < len(data) < len(patches(manifest))
    assert data.batch(0, 4).lr.shape == (4, 3, 56, 56)


def test_photographs_without_near_patches_borrow_one(manifest: Path, tmp_path: Path) -> None:
    where = "role = 'lr' OR image_path = 'china.jpg'"
    data = patches(copy(manifest, where, tmp_path / "subset.parquet"))
    rows = pq.read_table(tmp_path / "subset.parquet", columns=["image_path"])["image_path"]
    pairs = data.epoch(0)
    assert len(pairs) == len(data) > 20
    assert {rows[int(i)].as_py() for i in pairs[:, 1]} == {"china.jpg"}


@pytest.fixture(scope="module")
def damaged(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """A manifest with a bad picture of every kind, some of them one after the other."""
    rows = table(manifest)
    lr, hr = ([i for i, row in enumerate(rows) if row["role"] == role] for role in ("lr", "hr"))
    small, large = (rows[i[0]]["image"]["bytes"] for i in (lr, hr))  # type: ignore[index]
    kinds = list(bad_pictures(small, large).values())
    bad = dict(zip([*lr[3:12], *lr[-2:], *hr[-3:]], kinds, strict=True))
    target = tmp_path_factory.mktemp("damaged") / "m.parquet"
    return with_pictures(manifest, target, bad), set(bad)


def next_good(rows: list[dict[str, object]], row: int, bad: set[int]) -> int:
    """The same row, or the next of its role, around the end."""
    while row in bad:
        role = rows[row]["role"]
        row = next(i % len(rows) for i in range(row + 1, 3 * len(rows))
                   if rows[i % len(rows)]["role"] == role)  # fmt: skip
    return row


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_next_row_of_the_role_takes_the_place_of_a_bad_one(
    manifest: Path, damaged: tuple[Path, set[int]], world: int
) -> None:
    """Whatever the number of threads and processes, and wherever a run resumes."""
    path, bad = damaged
    data, rows = patches(path), table(manifest)
    pairs, steps = data.epoch(0), len(data) // 6
    parts = [list(patches(path).batches(1, steps, 6, 3, rank, world)) for rank in range(world)]
    met = set()
    for step, slices in enumerate(zip(*parts, strict=True), start=1):
        batch, wanted = together(list(slices)), pairs[6 * step : 6 * step + 6]
        assert batch.lr_rows == [next_good(rows, row, bad) for row in wanted[:, 0].tolist()]
        assert batch.hr_rows == [next_good(rows, row, bad) for row in wanted[:, 1].tolist()]
        assert batch.lr_captions == [rows[row]["caption"] for row in batch.lr_rows]
        assert {row.row for row in batch.skipped} <= bad
        assert {*wanted.flatten().tolist()} & bad <= {row.row for row in batch.skipped}
        met |= {row.row for row in batch.skipped}
        again = patches(path).batch(step, 6)  # as of a run that starts here
        assert torch.equal(again.lr, batch.lr) and torch.equal(again.hr, batch.hr)
        assert {row.row for row in again.skipped} == {row.row for row in batch.skipped}
    assert len(met) > len(bad) / 2


def test_a_role_without_a_usable_row_is_said(manifest: Path, tmp_path: Path) -> None:
    rows = table(manifest)
    bad = {i: b"no picture" for i, row in enumerate(rows) if row["role"] == "hr"}
    data = patches(with_pictures(manifest, tmp_path / "m.parquet", bad))
    message = rf"{len(bad)} 'hr' patches in a row cannot be used; row \d+ has a picture that is no"
    with pytest.raises(ManifestError, match=message):
        data.batch(0, 2)
