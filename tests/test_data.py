"""From a manifest to batches: what meets, what is read, and that it is always the same."""

from pathlib import Path

import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from schemas.manifest import ManifestError, open_manifest
from trainer.data import COLUMNS, Patches, _turned


def patches(manifest: Path, seed: int = 0) -> Patches:
    return Patches(open_manifest(manifest, COLUMNS), seed)


def table(manifest: Path) -> list[dict[str, object]]:
    return [row for f in open_manifest(manifest).files for row in pq.read_table(f).to_pylist()]


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
            turned = [torch.from_numpy(_turned(stored, i)).permute(2, 0, 1) / 255 for i in range(8)]
            assert sum(torch.equal(picture, t) for t in turned) == 1
            assert caption == row["caption"]
    assert batch.lr_rows == pairs[:, 0].tolist()


def test_the_eight_turns_are_the_squares_symmetries() -> None:
    square = np.arange(9).reshape(3, 3, 1)
    assert len({_turned(square, i).tobytes() for i in range(8)}) == 8


def test_order_hangs_on_seed_and_step_alone(manifest: Path) -> None:
    whole = list(patches(manifest).batches(0, 12, 5, workers=3))
    later = list(patches(manifest).batches(7, 12, 5, workers=1))
    for a, b in zip(whole[7:], later, strict=True):
        assert a.lr_rows == b.lr_rows and torch.equal(a.lr, b.lr) and torch.equal(a.hr, b.hr)
    other = list(patches(manifest, seed=1).batches(0, 12, 5, workers=1))
    assert [b.lr_rows for b in other] != [b.lr_rows for b in whole]


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


@pytest.mark.parametrize(
    ("where", "message"),
    [("role = 'lr'", "no 'hr' rows"), ("role = 'hr'", "no 'lr' rows"), ("false", "no rows")],
)
def test_what_cannot_be_trained_on_is_said(
    manifest: Path, tmp_path: Path, where: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        patches(copy(manifest, where, tmp_path / "subset.parquet"))


def test_other_sizes_are_refused(manifest: Path, tmp_path: Path) -> None:
    sql = f"SELECT * REPLACE (28::INTEGER AS size) FROM '{manifest}/*.parquet'"
    duckdb.sql(f"COPY ({sql}) TO '{tmp_path}/m.parquet' (FORMAT parquet)")
    with pytest.raises(ManifestError, match="'lr' patches of 28 pixels, expected 56"):
        patches(tmp_path / "m.parquet")


def test_memory_holds_a_window_and_no_more(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.WINDOW", 0)
    data = patches(manifest)
    for row in range(len(data.is_lr)):
        data._read(row)
        assert len(data._cache) <= 2
