"""A run of pretraining: its folder, resuming, the step, and what goes wrong."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from lasr.errors import UserError
from lasr.ownership import is_ours
from lasr.weights.tensors import read_tensors
from tests.support.training import config as train_config
from tests.trainer.pretrain.conftest import Settings
from trainer import checkpoint, export
from trainer.models.rrdb import rrdb_from, untrained_rrdb
from trainer.models.save import save_network
from trainer.pretrain import __main__ as command
from trainer.pretrain import step as step_module
from trainer.pretrain.loop import describe, pretrain
from trainer.pretrain.photographs import Photographs
from trainer.pretrain.step import PretrainStep


def stats(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    timing = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


@pytest.mark.parametrize("how", ["killed", "Ctrl-C"])
def test_a_run_that_was_stopped_equals_one_that_was_not(
    how: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"candidates": 2, "validate_on": settings().images[0]}
    whole, stopped = (settings(out=tmp_path / name, **changes) for name in ("whole", "stopped"))
    result = pretrain(whole)
    real, calls = PretrainStep.__call__, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if how == "killed" and len(calls) == 6:  # step 5 is logged, the checkpoint is step 4's
            raise RuntimeError("killed")
        if how == "Ctrl-C" and len(calls) == 3:  # step 4 is the first that knows of it
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(PretrainStep, "__call__", interrupted)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        pretrain(stopped)
    state = checkpoint.load(stopped.folder)
    assert state and state["step"] == 4
    monkeypatch.setattr(PretrainStep, "__call__", real)
    assert pretrain(stopped).psnr == result.psnr
    assert stats(stopped.folder) == stats(whole.folder)
    for path in result.weights:
        ours, theirs = (read_tensors(folder / path.name) for folder in (whole.out, stopped.out))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_a_run_learns_and_its_folder_is_complete(settings: Settings, tmp_path: Path) -> None:
    run = settings(
        steps=60, held_out=0.3, lr=3e-4, patch=16, batch_size=4, validate_every=30, sample_every=60
    )
    result = pretrain(run, "lasr pretrain --images x")
    first, *_, last = (line["psnr_y_held_out"] for line in stats(run.folder) if len(line) == 2)
    assert last == result.psnr["psnr_y_held_out"] > first + 0.1
    assert 20 < result.bicubic["held_out"] < 50
    names = {path.name for path in run.folder.iterdir()}
    assert names >= {
        "README.md", "config.json", "stats.jsonl", "checkpoint.pt", "model.safetensors",
        "model.pth", "model_ema.safetensors", "model_ema.pth", "samples", "lock",
    }  # fmt: skip
    assert "lasr pretrain --images x" in (run.folder / "README.md").read_text()
    assert {path.name for path in (run.folder / "samples").iterdir()} == {
        "step0000000.png", "step0000060.png",
    }  # fmt: skip
    marked = ("config.json", "README.md", *(path.name for path in result.weights))
    assert all(is_ours(run.folder / name) for name in marked)
    out = tmp_path / "mine.pth"  # what was trained is a network like any other
    assert export.main(["--weights", str(run.folder), "--out", str(out)]) == 0
    assert rrdb_from(read_tensors(out), out).features == 8


def test_the_learning_rate_is_that_of_pytorchs_schedulers(settings: Settings) -> None:
    run = settings(steps=30, warmup=10, validate_every=30, sample_every=30)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    rise = LinearLR(optimizer, start_factor=0.1, total_iters=9)
    schedule = SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, 20)], [10])
    expected = []
    for _ in range(30):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    pretrain(run)
    rates = [line["rate"] for line in stats(run.folder) if "rate" in line]
    assert rates == pytest.approx(expected, abs=1e-6)
    state = checkpoint.load(run.folder)
    assert state and state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-3 * rates[-1])


def test_the_moving_average_is_the_sum_of_its_formula(settings: Settings) -> None:
    config = settings(precision="float32", ema=0.8)
    photographs = Photographs(config)
    step = PretrainStep(config, untrained_rrdb(8, 1, 8))
    weights = [step.sr_network.conv_last.weight.detach().clone()]  # type: ignore[union-attr]
    for number in range(5):
        step(photographs.batch(number, 2), torch.empty(0))
        weights.append(step.sr_network.conv_last.weight.detach().clone())  # type: ignore[union-attr]
    # a_n = d^n w_0 + (1 - d) sum of d^(n - i) w_i
    expected = 0.8**5 * weights[0] + sum(
        0.2 * 0.8 ** (5 - i) * w for i, w in enumerate(weights) if i
    )
    assert step.average is not None
    torch.testing.assert_close(step.average.conv_last.weight, expected)  # type: ignore[union-attr]
    assert not torch.equal(weights[0], weights[5])


def test_the_step_is_l1_and_adam(settings: Settings) -> None:
    config = settings(precision="float32", ema=0, warmup=0, candidates=3)
    batch = Photographs(config).batch(3, 4)
    step, network = (
        PretrainStep(config, untrained_rrdb(8, 1, 8)),
        untrained_rrdb(8, 1, 8).to(memory_format=torch.channels_last),
    )
    step(batch, torch.empty(0), step=1)
    second = step(batch, torch.empty(0), step=3).tolist()
    numbers = dict(zip(step.names, second, strict=True))
    adam = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    losses = []
    for rate in (1e-3, 1e-3 * (1 + math.cos(2 / 8 * math.pi)) / 2):
        adam.zero_grad()
        loss = nn.functional.l1_loss(network(batch.lr), batch.hr)
        loss.backward()
        adam.param_groups[0]["lr"] = rate
        adam.step()
        losses.append(loss.item())
    assert numbers["l1"] == pytest.approx(losses[1], rel=1e-5)
    for ours, theirs in zip(step.sr_network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-6)


def test_a_number_that_is_not_finite_changes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings()
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(step_module, "colour_shift", lambda *_: nan)
    with pytest.raises(UserError, match="step 1: colour_shift not finite") as caught:
        pretrain(run)
    assert ".png" in str(caught.value)  # a photograph is named
    content = json.loads((run.folder / "nonfinite.json").read_text())
    assert len(content["patches"]["crops"]) == 2 and content["step"] == 1
    assert not (run.folder / "checkpoint.pt").exists()
    monkeypatch.undo()
    pretrain(run)


def test_a_run_may_start_from_weights(settings: Settings, tmp_path: Path) -> None:
    save_network(untrained_rrdb(12, 1, 4, seed=3), tmp_path, "start")
    run = settings(
        sr_init=str(tmp_path / "start.safetensors"), features=None, blocks=None, growth=None,
        steps=1, ema=0,
    )  # fmt: skip
    assert [path.name for path in pretrain(run).weights] == ["model.safetensors", "model.pth"]
    state = read_tensors(run.folder / "model.safetensors")
    assert state["conv_first.weight"].shape[0] == 12
    weights = json.loads((run.folder / "config.json").read_text())["weights"]
    assert weights["sr_init"].startswith("start@")


def test_other_settings_photographs_or_kinds_of_run_are_refused(
    settings: Settings, pictures: Path, tmp_path: Path
) -> None:
    run = settings(steps=1)
    pretrain(run)
    others = tmp_path / "others"
    others.mkdir()
    for path in sorted(pictures.iterdir())[:4]:
        (others / f"renamed-{path.name}").write_bytes(path.read_bytes())
    for changed, message in (
        (settings(steps=2), "steps = 1, now it is 2"),
        (settings(steps=1, features=4), "features = 8, now it is 4"),
        (settings(steps=1, images=[others]), "images_identity = "),
    ):
        before = {path: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
        for attempt in (pretrain, describe):
            with pytest.raises(UserError, match=message):
                attempt(changed)
        assert before == {path: path.read_bytes() for path in before}
    moved = pictures.rename(tmp_path / "moved")  # the same photographs at another place
    try:
        pretrain(settings(steps=1, images=[moved]))
    finally:
        moved.rename(pictures)
    manifest = tmp_path / "patches.parquet"
    with pytest.raises(UserError, match="holds a run of `lasr pretrain`"):
        checkpoint.check_settings(train_config(manifest, tmp_path, run.folder), "0", {})
    checkpoint.claim_folder(train_config(manifest, tmp_path, tmp_path / "train"), "0", {})
    with pytest.raises(UserError, match="holds a run of `lasr train`"):
        pretrain(settings(out=tmp_path / "train"))


def test_a_dry_run_writes_nothing(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = settings(validate_on=settings().images[0])
    flags = ["--images", str(run.images[0]), "--out", str(run.out), "--patch", "10", "--dry-run"]
    size = ["--features", "8", "--blocks", "1", "--growth", "8"]
    assert command.main([*flags, *size, "--validate-on", str(run.validate_on)]) == 0
    out = capsys.readouterr().out
    assert "5 photographs" in out and "1 held out, 6 given" in out
    assert f"{sum(p.numel() for p in untrained_rrdb(8, 1, 8).parameters()):,} parameters" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--images nowhere --out run", "nowhere"),
        ("--images PICTURES --out PICTURES/run", "is inside the input"),
        ("--images PICTURES/coffee.png --out run", "1 photograph, and 1 of them would be held"),
        ("--images PICTURES --out run --patch 64", "of at least 256 pixels each way"),
        ("--images PICTURES --out run --held-out 1", "--held-out"),
        ("--images PICTURES --out run --sr-init tiny-rrdb --blocks 3", "leave --blocks out"),
        ("--images PICTURES --out run --sr-init vgg19", "these are vgg weights"),
        ("--images PICTURES --out run --validate-lr PICTURES", "--validate-lr needs"),
        ("--images PICTURES --out run --patch 10 --validate-on nowhere", "nowhere"),
        (
            "--images PICTURES --out run --patch 10 --validate-on PICTURES --validate-lr PICTURES",
            "give LR pictures of a 4th of the size",
        ),
        ("--images PICTURES --out taken --patch 10", "holds mine.txt and no run"),
    ],
)
def test_bad_input_is_one_line(
    flags: str, message: str, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").write_text("mine")
    status = command.main(flags.replace("PICTURES", str(pictures)).split())
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert message in line and status in (1, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"taken"}
    assert not (pictures / "run").exists()


def test_several_processes_are_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = settings()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(["--images", str(run.images[0]), "--out", str(run.out)]) == 1
    assert "2 processes, and it trains in one" in capsys.readouterr().err
    assert not run.folder.exists()


def test_weights_of_a_resumed_run_must_be_its_own(settings: Settings) -> None:
    run = settings()
    pretrain(run)
    state = checkpoint.load(run.folder)
    assert state is not None
    state["sr"]["conv_first.weight"] = torch.zeros(4, 3, 3, 3)
    checkpoint.save(run.folder, state.pop("step"), **state)
    with pytest.raises(UserError, match="the checkpoint is of another network"):
        pretrain(run)
    assert np.isfinite(stats(run.folder)[-1]["psnr_y_held_out"])
