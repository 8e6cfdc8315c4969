"""A run that is watched: what it holds out, that it stays the same run, its best weights."""

import json
import logging
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from PIL import Image
from torch import nn

from lasr.errors import UserError
from lasr.weights.tensors import read_tensors
from schemas.manifest import ManifestError, open_manifest
from tests.support.training import config
from trainer import checkpoint, loop
from trainer.data.dataset import COLUMNS, Patches
from trainer.run_log import RunLog
from trainer.step import TrainStep
from trainer.watch import tracker

PLAIN = {"steps": 6, "checkpoint_every": 3, "sample_every": 100, "lr": 1e-3}


def stats(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    clock = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
    lines = [{k: v for k, v in line.items() if k not in clock} for line in lines]
    return [line for line in lines if line.get("kind") == kind]


def test_training_leaves_out_what_is_held_out(split_manifest: Path, manifest: Path) -> None:
    opened = open_manifest(split_manifest, COLUMNS)
    every, training = Patches(opened), Patches(opened, split="train")
    held = training.held_out
    sql = f"SELECT count(*) FROM '{split_manifest}' WHERE split = 'val'"
    assert held.sum() == duckdb.sql(sql).fetchall()[0][0] > 0
    pairs = training.epoch(0)
    assert len(pairs) == len(training) == len(every) - (held & (every.role == 0)).sum()
    assert not held[pairs].any()
    assert held[every.epoch(0)].any()  # --split all
    whole = Patches(open_manifest(manifest, COLUMNS), split="train")  # holds none out
    assert (whole.epoch(3) == Patches(open_manifest(manifest, COLUMNS)).epoch(3)).all()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("'val'", "no 'lr' row has the split `train`, all are held out; pass --split all"),
        ("CASE role WHEN 'hr' THEN 'test' END", "no 'hr' row has the split `train`"),
    ],
)
def test_a_manifest_that_holds_a_role_out_is_refused(
    manifest: Path, models: Path, tmp_path: Path, split: str, message: str
) -> None:
    path = tmp_path / "m.parquet"
    sql = f"SELECT * REPLACE ({split} AS split) FROM '{manifest}/*.parquet'"
    duckdb.sql(f"COPY ({sql}) TO '{path}' (FORMAT parquet)")
    with pytest.raises(ManifestError, match=message):
        loop.train(config(path, models, tmp_path / "run"))
    loop.train(config(path, models, tmp_path / "run", split="all", steps=1))


class Restless(nn.Module):
    """Bilinear enlargement and a little more, through batch norm and dropout: a careless validation
    would move the one's statistics and the other's random stream."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 48, 3, padding=1), nn.BatchNorm2d(48), nn.Dropout2d(0.3)
        self.body = nn.Sequential(*layers, nn.PixelShuffle(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        enlarged = nn.functional.interpolate(x, scale_factor=4, mode="bilinear")
        added: torch.Tensor = self.body(x)
        return enlarged + 0.01 * added


def restless(_: Any) -> nn.Module:
    torch.manual_seed(0)
    return Restless()


@pytest.mark.usefixtures("cheap_metric")
def test_a_watched_run_is_the_run_that_nobody_watches_and_resumes_exactly(
    split_manifest: Path, models: Path, photographs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (given := tmp_path / "given").mkdir()
    Image.open(photographs / "chelsea.png").crop((0, 0, 70, 120)).save(given / "cat.png")
    monkeypatch.setattr(loop, "load_sr", restless)
    runs = {
        name: config(split_manifest, models, tmp_path / name, **PLAIN, **changes)
        for name, changes in {
            "alone": {"validate_every": 0},
            "watched": {"validate_every": 2, "validate_on": given},
            "killed": {"validate_every": 2, "validate_on": given},
        }.items()
    }
    loop.train(runs["alone"])
    loop.train(runs["watched"])
    real, calls = TrainStep.__call__, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # step 4 was validated, the last checkpoint is step 3's
            raise RuntimeError("killed")
        return real(*arguments)

    monkeypatch.setattr(TrainStep, "__call__", dies)
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(runs["killed"])
    monkeypatch.setattr(TrainStep, "__call__", real)
    loop.train(runs["killed"])
    folders = {name: run.folder for name, run in runs.items()}
    assert stats(folders["alone"]) == stats(folders["watched"]) == stats(folders["killed"])
    assert not stats(folders["alone"], "validation")
    looks = stats(folders["watched"], "validation")
    assert looks == stats(folders["killed"], "validation")
    assert [look["step"] for look in looks] == [0, 2, 4, 6]
    assert looks[0]["drift_images"] == pytest.approx(0, abs=1e-6) and looks[0]["score"] == 0
    assert looks[-1]["drift_images"] > 1e-4
    assert {"niqe_given", "consistency_held_out", "quality_equal_size"} <= looks[0].keys()
    for name in ("model", "encoders"):
        files = [read_tensors(folder / f"{name}.safetensors") for folder in folders.values()]
        for other in files[1:]:
            assert all(torch.equal(files[0][key], other[key]) for key in files[0])
    ours, theirs = (
        read_tensors(folders[name] / "best.safetensors") for name in ("watched", "killed")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.usefixtures("cheap_metric")
def test_the_best_weights_stay_when_later_ones_are_worse(
    split_manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.watch import watcher

    found = iter([0.5, 0.2, None, 0.3])
    monkeypatch.setattr(watcher, "score", lambda *_: next(found))
    settings = config(
        split_manifest, models, tmp_path / "run", steps=3, validate_every=1, weights_every=1,
        sample_every=9,
    )  # fmt: skip
    loop.train(settings)
    best = read_tensors(settings.folder / "best.safetensors")
    first, last = (
        read_tensors(settings.folder / f"weights/step000000{n}.safetensors") for n in (1, 3)
    )
    assert all(torch.equal(best[key], first[key]) for key in best)
    assert not all(torch.equal(best[key], last[key]) for key in best)
    # Without a bad row or a disturbance the lines name the score, and the page the step.
    assert [look.get("score") for look in stats(settings.folder, "validation")] == [
        0.5, 0.2, None, 0.3,
    ]  # fmt: skip
    assert "weights so far are of step 1 " in (settings.folder / "run.html").read_text()


def test_a_run_of_before_rows_were_held_out_goes_on_with_all(
    split_manifest: Path, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = config(split_manifest, models, tmp_path / "whole", split="all", validate_every=0)
    loop.train(whole)
    older = config(split_manifest, models, tmp_path / "older", split="all", validate_every=0)
    loop.train(older.model_copy(update={"steps": 2}))
    path = older.folder / "config.json"
    settings = json.loads(path.read_text())
    for name in ("split", "validate_every", "validate_on", "reference", "wandb"):
        del settings[name]
    path.write_text(json.dumps(settings))
    loop.train(older.model_copy(update={"split": "train"}))
    assert "goes on with all" in caplog.text
    assert stats(older.folder)[-1] == stats(whole.folder)[-1]
    with pytest.raises(UserError, match="holds a run with split = all, now it is train"):
        loop.train(older.model_copy(update={"split": "train", "steps": 5}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: {"validate_on": f / "none"}, "none"),
        (lambda f: {"validate_on": f / "small"}, "give pictures of at least 56 pixels"),
        (lambda f: {"validate_on": f / "lr", "reference": f / "small"}, "nothing of the name a"),
        (lambda f: {"validate_on": f / "lr", "reference": f / "lr"}, "4 times a.png is 320x240"),
        (lambda f: {"wandb": True}, "run `pip install wandb`, or omit --wandb"),
    ],
)
def test_what_cannot_be_validated_on_is_one_line_before_any_step(
    make: Callable[[Path], dict[str, Any]], message: str, split_manifest: Path, models: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    for name, size in (("small", (40, 80)), ("lr", (80, 60))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / ("a.png" if name == "lr" else "b.png"))
    with pytest.raises(UserError, match=message):
        loop.train(config(split_manifest, models, tmp_path / "run", **make(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_a_reference_without_pictures_is_refused(manifest: Path, models: Path) -> None:
    with pytest.raises(ValueError, match="--reference needs the pictures of --validate-on"):
        config(manifest, models, Path("run"), reference=Path("x"))


def test_weights_and_biases_gets_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []

    class Run:
        def log(self, values: dict[str, Any], step: int) -> None:
            sent.append((step, values))
            if step == 9:
                raise OSError("connection lost")

        def finish(self) -> None:
            sent.append("finished")

    def init(**about: Any) -> Run:
        sent.append(about)
        return Run()

    stub = types.ModuleType("wandb")
    stub.init, stub.Image = init, str  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "wandb", stub)
    (tmp_path / "config.json").write_text(json.dumps({"lr": 1e-4}))
    log = RunLog(tmp_path, 0, "again", tracker=tracker.Tracker(tmp_path))
    log.scalars(1, {"total": 2.0})
    log.validation(1, {"niqe_held_out": 5.0})
    with caplog.at_level(logging.WARNING):
        log.scalars(9, {"total": 1.0})
        log.scalars(9, {"total": 1.0})
    log.close()
    about, *numbers, last = sent
    assert about["project"] == "la-sr" and about["resume"] == "allow" and about["id"]
    assert about["config"] == {"lr": 1e-4} and last == "finished"
    assert numbers[:2] == [(1, {"total": 2.0}), (1, {"validation/niqe_held_out": 5.0})]
    assert caplog.text.count("some numbers are not sent (connection lost)") == 1
    assert stats(tmp_path)[-1] == {"step": 9, "total": 1.0}
    stub.init = lambda **_: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"it does not start .*wandb login"):
        tracker.Tracker(tmp_path)


def test_small_pictures_fine_tune_with_encoders_of_a_run(
    manifest: Path, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lr_only = tmp_path / "lr.parquet"
    sql = f"SELECT * FROM '{manifest}/*.parquet' WHERE role = 'lr'"
    duckdb.sql(f"COPY ({sql}) TO '{lr_only}' (FORMAT parquet)")
    with pytest.raises(ManifestError, match=r"no 'hr' rows.*or pass --freeze-encoders"):
        loop.train(config(lr_only, models, tmp_path / "run"))
    first = config(manifest, models, tmp_path / "first", steps=2, lr=1e-3)
    loop.train(first)
    saved = read_tensors(first.folder / "encoders.safetensors")
    state = checkpoint.load(first.folder)
    assert state and all(torch.equal(saved[key], state["encoders"][key]) for key in saved)
    (alone := tmp_path / "alone").mkdir()
    file = alone / "encoders.safetensors"
    file.write_bytes((first.folder / "encoders.safetensors").read_bytes())
    tuned = []
    for name, encoders in (("bare", None), ("folder", first.folder), ("file", file)):
        caplog.clear()
        run = config(
            lr_only, models, tmp_path / name, freeze_encoders=True, encoders=encoders, steps=2
        )
        loop.train(run)
        assert ("never learned quality" in caplog.text) == (encoders is None), name
        assert not (run.folder / "encoders.safetensors").exists()
        tuned.append(read_tensors(run.folder / "model.safetensors"))
    assert all(torch.equal(tuned[1][key], tuned[2][key]) for key in tuned[1])
    assert not all(torch.equal(tuned[0][key], tuned[1][key]) for key in tuned[1])
    unlearned = config(manifest, models, tmp_path / "off", steps=1, weight_quality=0)
    loop.train(unlearned)
    loop.train(
        config(lr_only, models, tmp_path / "x", freeze_encoders=True, encoders=unlearned.folder)
    )
    assert "did not train them on it, so they never learned quality" in caplog.text
