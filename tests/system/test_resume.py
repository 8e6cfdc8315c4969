"""Killed at any moment and started again, a run is the run that was never stopped, bit for bit."""

import json
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import trainer.run
from lasr.errors import UserError
from tests.support import processes
from tests.support.upstream import save_clip
from trainer import checkpoint
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network
from trainer.step import TrainStep

STEPS = 20


@pytest.fixture(scope="module")
def arguments(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a small run that writes a checkpoint every third step."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_network(untrained_rrdb(8, 1, 8), folder, "sr")
    text = (
        f"--manifest {manifest} --profile test --clip {folder}/clip --batch-size 2"
        f" --sr-init {folder}/sr.safetensors --steps {STEPS} --log-every 1 --checkpoint-every 3"
        f" --sample-every 100 --workers 2 --ema 0.9 --lr 1e-3"
    )
    return text.split()


def train(arguments: list[str], dies_writing: int = 0, holds: Path | None = None) -> None:
    """`python -m trainer.run` in this process.

    dies_writing: the checkpoint it does not survive. holds: a folder; before its fourth step the
    process leaves a file `held` there and waits for a file `go`, so that no signal comes too late.
    """
    torch.set_num_threads(1)
    real_save, written = torch.save, []
    real_step, steps = TrainStep.__call__, []

    def save(state: Any, path: Path) -> None:
        real_save(state, path)
        written.append(path)
        if len(written) == dies_writing:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self: TrainStep, *batch: Any) -> Any:
        steps.append(batch)
        if holds and len(steps) == 4:
            (holds / "held").touch()
            while not (holds / "go").exists():
                time.sleep(0.01)
        return real_step(self, *batch)

    torch.save = save  # type: ignore[assignment]
    TrainStep.__call__ = step  # type: ignore[method-assign]
    sys.exit(trainer.run.main(arguments))


def lines(folder: Path) -> list[dict[str, Any]]:
    """stats.jsonl without what a clock wrote."""
    path = folder / "stats.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    clock = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


def test_a_run_killed_again_and_again_equals_one_left_alone(
    arguments: list[str], tmp_path: Path
) -> None:
    alone, killed = (([*arguments, "--out", str(tmp_path / x)]) for x in ("alone", "killed"))
    folder, chance = tmp_path / "killed", random.Random()
    start = processes.context().Process

    undisturbed = start(target=train, args=(alone,))
    undisturbed.start()
    survived = []
    for number in (signal.SIGKILL, None, signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        holds = tmp_path / f"holds{len(survived)}"
        holds.mkdir()
        process = start(target=train, args=(killed, 2 if number is None else 0, holds))
        before = len(lines(folder)) if folder.exists() else 0
        process.start()
        if number is None:
            (holds / "go").touch()
        else:
            while process.is_alive() and not (holds / "held").exists():
                if number == signal.SIGKILL and len(lines_safely(folder)) > before + 1:
                    time.sleep(chance.random() * 0.06)  # at any moment
                    break
                time.sleep(0.002)
            assert process.pid is not None and process.is_alive()
            os.kill(process.pid, number)
            (holds / "go").touch()  # it was told to stop, and may now finish its step
        process.join()
        assert process.exitcode == (-9 if number in (None, signal.SIGKILL) else 130), number
        state = checkpoint.load(folder)
        survived.append(state["step"] if state else 0)
    assert survived == sorted(survived) and survived[-1] < STEPS, "killed too late to show anything"
    assert len(set(survived)) >= 3, survived

    last = start(target=train, args=(killed,))
    last.start()
    for process in (last, undisturbed):
        process.join()
        assert process.exitcode == 0
    assert [line["step"] for line in lines(folder)] == list(range(1, STEPS + 1))
    assert lines(folder) == lines(tmp_path / "alone")
    for name in ("model", "model_ema"):
        first, second = (
            safetensors.torch.load_file(tmp_path / x / f"{name}.safetensors")
            for x in ("alone", "killed")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (checkpoint.load(tmp_path / x) for x in ("alone", "killed"))
    assert same(first, second)


def lines_safely(folder: Path) -> list[dict[str, Any]]:
    """While another process writes the last line."""
    try:
        return lines(folder)
    except json.JSONDecodeError:
        return []


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints are equal in every bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Trap:
    """What a pickle would run when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_with_code_in_it_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"step": Trap(mark)}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
        checkpoint.load(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps({"step": Trap(mark)}))
    with pytest.raises(UserError, match=r"checkpoint\.pt: the checkpoint cannot be read"):
        checkpoint.load(tmp_path)
    assert not mark.exists()
    pickle.loads((tmp_path / "checkpoint.pt").read_bytes())
    assert mark.exists()  # it was a real trap


def test_the_checkpoint_before_stands_in_for_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert checkpoint.load(tmp_path) is None
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, sr={"w": torch.full((3,), step)})
    path, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    for name, step in ((path, 3), (previous, 2)):
        assert torch.load(name, weights_only=True)["step"] == step
    path.write_bytes(path.read_bytes()[:100])
    state = checkpoint.load(tmp_path)
    assert state is not None and state["step"] == 2 and state["sr"]["w"].tolist() == [2, 2, 2]
    assert "resuming from checkpoint.previous.pt, after step 2" in caplog.text
    path.unlink()  # killed between the two renames
    state = checkpoint.load(tmp_path)
    assert state is not None and state["step"] == 2
    previous.write_bytes(b"")
    with pytest.raises(UserError, match="remove it to start over"):
        checkpoint.load(tmp_path)
