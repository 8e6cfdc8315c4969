"""What a run shows in Prefect's UI, against the manifest read by other means."""

import base64
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.query.views import connect
from pipeline.report import overview as artifacts
from schemas.catalogue import images_path


def test_counts_reconcile_with_the_catalogue(manifest: Path, tmp_path: Path) -> None:
    catalogue = pq.read_table(images_path(manifest)).to_pylist()
    with connect(manifest) as connection:
        rows = artifacts.counts(connection)
    assert sum(row["photographs"] for row in rows) == len(catalogue)
    for row in rows:
        same = [entry for entry in catalogue if entry["status"] == row["status"]]
        assert row["lr"] == sum(entry["n_lr"] for entry in same)
        assert row["hr"] == sum(entry["n_hr"] for entry in same)
        assert row["photographs"] == len(same)


def test_top_words_are_the_commonest_of_each_role(manifest: Path) -> None:
    patches = pq.read_table(manifest, columns=["role", "words"]).to_pylist()
    with connect(manifest) as connection:
        rows = artifacts.top_words(connection)
    assert [row["rank"] for row in rows] == list(range(1, artifacts.WORDS + 1))
    for role in ("lr", "hr"):
        counted = Counter(word for p in patches if p["role"] == role for word in p["words"])
        best = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[: artifacts.WORDS]
        assert [(row[role], row[f"{role} patches"]) for row in rows] == best


def test_the_picture_pairs_far_and_near_of_one_photograph(manifest: Path) -> None:
    best = [p for p in pq.read_table(manifest).to_pylist() if p["rank"] == 0]
    with connect(manifest) as connection:
        sheet = np.asarray(artifacts.contact_sheet(connection))
    step, tile = artifacts.TILE + artifacts.GAP, artifacts.TILE
    assert sheet.shape == (2 * step - artifacts.GAP, artifacts.COLUMNS * step - artifacts.GAP, 3)
    photographs = sorted({patch["image_id"] for patch in best})
    assert len(photographs) == 7
    for patch in best:
        x = step * photographs.index(patch["image_id"])
        y = step * ("lr", "hr").index(patch["role"])
        shown = sheet[y : y + tile, x : x + tile].astype(int)
        pixels = np.asarray(Image.open(io.BytesIO(patch["image"]["bytes"])), dtype=int)
        if patch["role"] == "lr":  # each pixel becomes 2 x 2
            assert np.array_equal(shown, pixels.repeat(2, 0).repeat(2, 1))
        else:  # each 2 x 2 becomes its mean
            mean = pixels.reshape(tile, 2, tile, 2, 3).mean((1, 3))
            assert abs(shown - mean).max() <= 1
    assert (sheet[:, 7 * step :] == 255).all()  # no eighth photograph


def test_describe_and_its_size(manifest: Path) -> None:
    shown = artifacts.describe(manifest)
    assert shown.untrained and shown.counts and shown.words
    kind, encoded = shown.contact_sheet.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        width, height = picture.size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert len(artifacts._data_uri(Image.fromarray(noise))) < 200_000


def test_a_manifest_of_one_role(manifest: Path, tmp_path: Path) -> None:
    only = tmp_path / "near.parquet"
    with connect(manifest) as connection:
        connection.sql(f"COPY (FROM patches WHERE role = 'hr') TO '{only}'")
    with connect(only) as connection:
        assert artifacts.top_words(connection)[0]["lr"] is None
        sheet = np.asarray(artifacts.contact_sheet(connection))
    assert (sheet[: artifacts.TILE] == 255).all() and (sheet[artifacts.TILE :] < 255).any()
