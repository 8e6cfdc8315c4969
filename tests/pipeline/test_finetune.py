"""A manifest of a few pictures, and a network fine-tuned on it (appendix E.1)."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import trainer.run
from lasr.weights.locate import locate
from pipeline.finetune import main
from pipeline.stages.captions import DICTIONARY, Captioner, read_dictionary
from schemas.manifest import PATCHES, Row, open_manifest, patch_id
from tests.support.upstream import save_clip
from tests.support.weights import load_rrdb
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture
def mine(photographs: Path, tmp_path: Path) -> Path:
    """Two pictures to enlarge: one of them is smaller than an HR patch."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(photographs / "coffee.png", folder)
    Image.open(photographs / "chelsea.png").crop((100, 50, 190, 130)).save(folder / "small.png")
    return folder


def make(mine: Path, clip: Path, out: Path, *more: str) -> int:
    return main(["--lr-images", str(mine), "--clip", str(clip), "--out", str(out), *more])


def rows(out: Path) -> list[Row]:
    table: list[Row] = ds.dataset(str(out)).to_table().to_pylist()
    return table


def test_rows_are_patches_of_the_pictures(mine: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.parquet"
    assert make(mine, clip, out, "--k", "5") == 0
    found = open_manifest(out)
    assert found.schema.names == PATCHES.names and found.metadata["parameters"]["k"] == 5
    assert [(r["image_path"], r["role"]) for r in rows(out)] == [
        *[("coffee.png", "lr")] * 5, *[("coffee.png", "hr")] * 5, *[("small.png", "lr")] * 5
    ]  # fmt: skip
    captioner = Captioner(
        locate(str(clip), "clip"), read_dictionary(DICTIONARY), torch.device("cpu")
    )
    for row in rows(out):
        pixels = np.asarray(Image.open(mine / row["image_path"]).convert("RGB"))
        x, y, size = row["x"], row["y"], row["size"]
        crop = pixels[y : y + size, x : x + size]
        stored = cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert size == {"lr": 56, "hr": 224}[row["role"]] and np.array_equal(stored, crop)
        assert row["patch_id"] == patch_id(row["image_id"], row["role"], x, y, size)
        assert row["words"] == captioner.caption([crop])[0].words
        assert row["distance"] is None and row["depth_model"] == "none"
        assert row["strategy"] == "random" and row["texture"] > 0
    catalogue = pq.read_table(tmp_path / "mine.images.parquet").to_pylist()
    assert [(c["path"], c["status"], c["n_lr"], c["n_hr"]) for c in catalogue] == [
        ("coffee.png", "ok", 5, 5), ("small.png", "ok", 5, 0)
    ]  # fmt: skip


def test_patches_come_from_all_over_and_depend_on_seed_and_picture_alone(
    mine: Path, clip: Path, tmp_path: Path
) -> None:
    out = {name: tmp_path / f"{name}.parquet" for name in ("all", "again", "other", "one")}
    make(mine, clip, out["all"], "--k", "80")
    coffee = [r for r in rows(out["all"]) if r["role"] == "lr" and r["image_path"] == "coffee.png"]
    assert len({r["patch_id"] for r in rows(out["all"])}) == len(rows(out["all"]))
    for axis, length in (("x", 600), ("y", 400)):
        places = [r[axis] for r in coffee]
        assert min(places) < 40 and max(places) > length - 56 - 40
        assert abs(np.mean(places) - (length - 56) / 2) < length / 8
    make(mine, clip, out["again"], "--k", "80")
    make(mine, clip, out["other"], "--k", "80", "--seed", "1")
    make(mine / "coffee.png", clip, out["one"], "--k", "80")
    assert rows(out["again"]) == rows(out["all"])
    assert {r["patch_id"] for r in rows(out["other"])} != {r["patch_id"] for r in rows(out["all"])}
    alone = [r["patch_id"] for r in rows(out["one"])]
    assert alone == [r["patch_id"] for r in rows(out["all"])][: len(alone)]


def test_good_pictures_give_the_hr_patches_and_copies_count_once(
    mine: Path, clip: Path, photographs: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    good.mkdir()
    shutil.copy(photographs / "china.jpg", good)
    shutil.copy(mine / "small.png", mine / "twin.png")
    out = tmp_path / "mine.parquet"
    assert make(mine, clip, out, "--hr-images", str(good), "--k", "3") == 0
    assert [(r["image_path"], r["role"]) for r in rows(out)] == [
        *[("china.jpg", "hr")] * 3, *[("coffee.png", "lr")] * 3, *[("small.png", "lr")] * 3,
    ]  # fmt: skip
    status = {
        c["path"]: c["status"] for c in pq.read_table(tmp_path / "mine.images.parquet").to_pylist()
    }
    assert status["twin.png"] == "duplicate" and len(status) == 4


def test_fine_tuning_moves_the_sr_network_alone(
    mine: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "mine.parquet", tmp_path / "run"
    make(mine, clip, out, "--k", "4")
    start, _ = save_network(untrained_rrdb(8, 1, 8), tmp_path, "start")
    argv = [
        "--manifest", str(out), "--sr-init", str(start), "--freeze-encoders", "--lr", "1e-7",
        "--profile", "test", "--clip", str(clip), "--steps", "3", "--batch-size", "4",
        "--log-every", "1", "--out", str(run),
    ]  # fmt: skip
    assert trainer.run.main(argv) == 0
    stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert len(stats) == 3 and all(line.get("gradient_norm_encoders", 0) == 0 for line in stats)
    before, after = load_rrdb(start), load_rrdb(run / "model.safetensors")
    changes = [
        (a - b).abs().max().item()
        for a, b in zip(before.parameters(), after.parameters(), strict=True)
    ]
    # Three steps of Adam: each weight moves by at most about lr a step.
    assert 0 < max(changes) < 5e-7


def test_small_pictures_alone_make_a_set_that_frozen_encoders_train_on(
    mine: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "mine.parquet", tmp_path / "run"
    with Image.open(mine / "small.png") as picture:
        picture.crop((0, 0, 56, 56)).save(mine / "least.png")
    assert make(mine / "least.png", clip, out, "--k", "4") == 0
    assert "no hr patch: no picture has 224 pixels each way" in capsys.readouterr().out
    assert {(r["role"], r["x"], r["y"]) for r in rows(out)} == {("lr", 0, 0)}
    (mine / "least.png").unlink()
    assert make(mine / "small.png", clip, out, "--k", "4") == 0
    argv = [
        "--manifest", str(out), "--profile", "test", "--clip", str(clip), "--steps", "1",
        "--batch-size", "2", "--out", str(run),
    ]  # fmt: skip
    assert trainer.run.main(argv) == 1
    assert "no 'hr' rows" in capsys.readouterr().err and not run.exists()
    assert trainer.run.main([*argv, "--freeze-encoders"]) == 0
    assert (run / "model.safetensors").is_file()


def test_mistakes_get_one_line(
    mine: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.parquet"
    small = str(mine / "small.png")
    assert make(mine / "small.png", clip, out, "--hr-images", small) == 1
    assert "no picture is large enough for 'hr' patches of 224 pixels (" in (
        error := capsys.readouterr().err
    )
    assert "); give others with --hr-images" in error
    Image.new("RGB", (30, 300)).save(mine / "thin.png")
    assert make(mine / "thin.png", clip, out, "--hr-images", str(mine / "coffee.png")) == 1
    assert "'lr' patches of 56 pixels (30x300: " in (error := capsys.readouterr().err)
    assert "); give others with --lr-images" in error
    assert make(mine / "nothing", clip, out) == 1
    (mine / "broken.png").write_bytes(b"no")
    assert not out.exists() and not list(tmp_path.glob("*.images.parquet"))
    assert make(mine, clip, out, "--k", "1") == 0  # broken.png and thin.png stop nothing
    out.unlink()
    out.mkdir()
    assert make(mine, clip, out) == 1
    assert "is a folder, and a file is to be written" in capsys.readouterr().err
