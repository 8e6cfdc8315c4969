"""Figure 7: which encoders are shown, which patches, and what the scores say."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lasr.errors import UserError
from lasr.weights.locate import locate
from schemas.manifest import open_manifest
from tests.support.bad_rows import bad_pictures, one_table, with_pictures
from tests.support.upstream import save_clip
from tests.support.weights import load_encoders
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.features import __main__ as features
from trainer.features import encode as encode_module
from trainer.features.__main__ import main
from trainer.features.encode import encode
from trainer.features.maps import agreement, chance
from trainer.features.sample import COLUMNS, choose, word_labels
from trainer.models.encoders import Encoders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_folder(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of 7 steps leaves: settings, and a checkpoint whose encoders have moved."""
    folder = tmp_path_factory.mktemp("runs")
    save_clip(folder / "clip")
    config = TrainConfig(manifest=manifest, out=folder / "run", clip=str(folder / "clip"))
    encoders = load_encoders(str(folder / "clip"), CPU)
    identity = locate(str(folder / "clip"), "clip").identity
    checkpoint.claim_folder(config, "0", {"clip": identity, "sr_init": "x@1", "vgg": "x@1"})
    checkpoint.save(config.folder, 7, encoders=moved(encoders).state_dict())
    return config.folder


def moved(encoders: Encoders) -> Encoders:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in encoders.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoders


def argv(run_folder: Path, manifest: Path, out: Path, *more: str) -> list[str]:
    return ["--weights", str(run_folder), "--manifest", str(manifest), "--out", str(out), *more]


def test_the_map_is_made_of_features_before_and_after(
    run_folder: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches the map is encode_image of each patch, by the start's and the run's encoders."""
    seen: list[Any] = []

    def draw(views: list[Any], *_: object) -> None:
        seen.extend(views)
        raise UserError("seen enough")

    monkeypatch.setattr(features, "draw", draw)
    assert main(argv(run_folder, manifest, tmp_path)) == 1
    before = load_encoders(str(run_folder.parent / "clip"), CPU)
    after = moved(load_encoders(str(run_folder.parent / "clip"), CPU))
    assert [(v.title, v.stage) for v in seen] == [
        ("F_LR and F_HR", "before training"), ("F_LR and F_HR", "after 7 steps"),
        ("F_HR by word", "before training"), ("F_HR by word", "after 7 steps"),
    ]  # fmt: skip
    for view, encoders in zip(seen, (before, after, before, after), strict=True):
        for row_number in (0, len(view.labels) - 1):
            row = view.rows.slice(row_number, 1).to_pylist()[0]
            pixels = np.array(Image.open(io.BytesIO(row["image"]["bytes"])))
            picture = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
            with torch.no_grad():
                feature = encoders.images(picture)[0].numpy()
            feature /= np.linalg.norm(feature)
            np.testing.assert_allclose(view.features[row_number], feature, atol=1e-5)
            expected = row["role"] if view.title == "F_LR and F_HR" else row["words"]
            assert view.labels[row_number] == expected or view.labels[row_number] in expected
    assert set(seen[2].rows["role"].to_pylist()) == {"hr"}


def test_one_seed_one_map(
    run_folder: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {}
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        out = tmp_path / name
        assert main(argv(run_folder, manifest, out, "--patches", "40", "--seed", seed)) == 0
        tables[name] = pq.read_table(out / "coordinates.parquet")
    assert tables["a"].equals(tables["b"])
    assert not tables["a"].equals(tables["c"])
    assert (tmp_path / "a/features.png").read_bytes() == (tmp_path / "b/features.png").read_bytes()
    assert Image.open(tmp_path / "a" / "features.png").size == (1560, 1440)
    assert tables["a"].column_names == ["patch_id", "role", "view", "label", "stage", "x", "y"]
    assert np.isfinite(tables["a"]["x"].to_numpy()).all()
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert [score["patches"] for score in scores[:2]] == [40, 40] and scores[0]["chance"] == 0.5
    printed = capsys.readouterr().out
    assert f"F_LR and F_HR, after 7 steps: {scores[1]['sentence']}" in printed


def test_patches_are_drawn_evenly_from_all_over(manifest: Path, tmp_path: Path) -> None:
    opened = open_manifest(manifest, COLUMNS)
    table = choose(opened, 20, seed=3)
    assert table["role"].to_pylist() == ["lr"] * 20 + ["hr"] * 20
    assert len(set(table["patch_id"].to_pylist())) == 40
    assert table.equals(choose(opened, 20, seed=3)) and not table.equals(choose(opened, 20, seed=4))
    counts = duckdb.sql(
        f"SELECT role, count(*) FROM '{manifest}/*.parquet' GROUP BY role ORDER BY role"
    ).fetchall()
    everything = choose(opened, 10_000, seed=0)
    assert len(everything) == 2 * min(count for _, count in counts)
    few = tmp_path / "few.parquet"
    duckdb.sql(f"COPY (SELECT * FROM '{manifest}/*.parquet' WHERE role = 'lr') TO '{few}'")
    with pytest.raises(UserError, match=r"few\.parquet: only 0 'hr' patches; give"):
        choose(open_manifest(few, COLUMNS), 20, 0)


def test_a_large_manifest_is_not_read_whole(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty row groups, of which a few are enough for twenty patches a role."""
    rows = pa.concat_tables(pq.read_table(file) for file in open_manifest(manifest).files)
    with pq.ParquetWriter(tmp_path / "large.parquet", rows.schema) as writer:
        for _ in range(40):
            writer.write_table(rows)
    reads = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *a, **k: (reads.append(1), real(*a, **k))[1]
    )
    assert len(choose(open_manifest(tmp_path / "large.parquet", COLUMNS), 20, 0)) == 40
    assert len(reads) == 2


def test_words_are_those_that_captions_name_first() -> None:
    captions = [
        ("lr", ["sky", "tree"]), ("hr", ["tree", "sky"]), ("hr", ["tree", "wall"]),
        ("hr", ["wall", "sky"]), ("hr", ["fog", "sky", "wall"]),
    ]  # fmt: skip
    table = pa.table({"role": [c[0] for c in captions], "words": [c[1] for c in captions]})
    assert word_labels(table, None).tolist() == [None, "tree", "tree", "wall", "fog"]
    assert word_labels(table, ["wall", "sky"]).tolist() == [None, "sky", "wall", "wall", "sky"]
    with pytest.raises(UserError, match="--words sea: in no caption of the HR patches drawn"):
        word_labels(table, ["sky", "sea"])


def test_agreement_equals_scikit_learns_neighbours_among_other_photographs() -> None:
    from sklearn.neighbors import NearestNeighbors  # takes seconds

    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 8)).astype(np.float32)
    points[:30] += 1
    points += np.repeat(rng.normal(size=(12, 8)), 5, axis=0)  # of one photograph: alike
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    labels = np.array(["a"] * 30 + ["b"] * 30, dtype=object)
    photographs = [f"{i // 5}" for i in range(60)]
    shares = []
    for i in range(60):
        others = [j for j in range(60) if photographs[j] != photographs[i]]
        search = NearestNeighbors(n_neighbors=10, metric="cosine").fit(points[others])
        nearest = search.kneighbors(points[i : i + 1], return_distance=False)[0]
        shares.append(np.mean(labels[np.array(others)[nearest]] == labels[i]))
    assert agreement(points, labels, photographs) == pytest.approx(np.mean(shares), abs=1e-9)
    assert agreement(points, labels, list(map(str, range(60)))) > np.mean(shares) + 0.02
    assert np.isnan(agreement(points, labels, ["one"] * 60))
    assert agreement(points[:4], labels[27:31], ["1", "1", "2", "2"]) == pytest.approx(0.5)
    assert chance(labels) == 0.5 and chance(np.array(["a", "a", "a", "b"])) == 0.625


def test_encoding_does_not_depend_on_the_batch(
    run_folder: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = load_encoders(str(run_folder.parent / "clip"), CPU)
    table = choose(open_manifest(manifest, COLUMNS), 9, 0)
    whole = encode(encoders, table, CPU, "")
    monkeypatch.setattr(encode_module, "BATCH", 4)
    np.testing.assert_allclose(encode(encoders, table, CPU, ""), whole, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)


def test_mistakes_get_one_line(
    run_folder: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    save_clip(tmp_path / "other", seed=2)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_text((run_folder / "config.json").read_text())
    for folder, more, message in [
        (run_folder, ["--words", "zebra crossing"], "--words zebra crossing: in no caption"),
        (run_folder, ["--clip", str(tmp_path / "other")], "but the run started from clip@"),
        (unfinished, [], "unfinished: no checkpoint yet"),
        (tmp_path, [], "no readable config.json of a run"),
    ]:
        assert main(argv(folder, manifest, tmp_path / "out", *more)) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert main(argv(run_folder, manifest, tmp_path / "out", "--patches", "20")) == 1
    error = capsys.readouterr().err
    assert "run `pip install 'la-sr[plots]'`" in error and "features" not in error  # no work yet
    assert not (tmp_path / "out").exists()


def test_patches_that_cannot_be_decoded_are_left_out(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = one_table(manifest)
    lr, hr = ([i for i, x in enumerate(table["role"].to_pylist()) if x == r] for r in ("lr", "hr"))
    small, large = (table["image"][rows[0]].as_py()["bytes"] for rows in (lr, hr))
    kinds = list(bad_pictures(small, large).values())
    pictures = dict(zip([*hr[-7:], *lr[:7]], kinds, strict=True))
    bad = with_pictures(manifest, tmp_path / "m.parquet", pictures)
    chosen = choose(open_manifest(bad, COLUMNS), 100, 0)
    ids = table["patch_id"].to_pylist()
    wanted = {ids[i] for i in range(len(ids)) if i not in pictures}
    assert set(chosen["patch_id"].to_pylist()) <= wanted and len(chosen) >= len(wanted) - 7
    assert "m.parquet: 14 rows cannot be used, left out" in caplog.text
    assert word_labels(chosen, None).tolist()
