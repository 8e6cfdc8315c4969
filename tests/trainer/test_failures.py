"""What a run meets on its way: bad rows, another run, a full disk, no memory, Ctrl-C twice."""

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import trainer.run
from lasr.cli import run_command
from lasr.errors import UserError
from lasr.lock import sole_writer
from tests.support.bad_rows import bad_pictures, one_table, replaced, with_pictures
from tests.support.training import config, flags
from trainer import checkpoint, loop, plan, run_log
from trainer.config import TrainConfig
from trainer.data.skipped import most_skipped
from trainer.step import TrainStep

PLAIN: dict[str, Any] = {"steps": 4, "checkpoint_every": 2, "sample_every": 100}


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file, without what a clock wrote."""
    clock = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


def assert_equal_runs(a: Path, b: Path) -> None:
    for name in ("stats.jsonl", "skipped.jsonl"):
        assert (a / name).exists() == (b / name).exists()
        assert not (a / name).exists() or lines(a / name) == lines(b / name)
    first, second = (safetensors.torch.load_file(x / "model.safetensors") for x in (a, b))
    assert all(torch.equal(first[name], second[name]) for name in first)


def on_call(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Do something in the n-th step from now."""
    real, calls = TrainStep.__call__, [0]

    def step(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            monkeypatch.setattr(TrainStep, "__call__", real)
            action()
        return real(*arguments)

    monkeypatch.setattr(TrainStep, "__call__", step)


def fail(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


@pytest.fixture(scope="module")
def undisturbed(manifest: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    settings = config(manifest, models, tmp_path_factory.mktemp("runs") / "run", **PLAIN)
    loop.train(settings)
    return settings.folder


# Bad rows -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """A manifest with a bad picture of every kind, half of them LR."""
    table = one_table(manifest)
    roles = table["role"].to_pylist()
    lr, hr = ([i for i, role in enumerate(roles) if role == r] for r in ("lr", "hr"))
    small, large = (table["image"][rows[0]].as_py()["bytes"] for rows in (lr, hr))
    kinds = list(bad_pictures(small, large).values())
    bad = dict(zip([*hr[0:14:2], *lr[0:14:2]], kinds, strict=True))
    target = tmp_path_factory.mktemp("damaged") / "m.parquet"
    return with_pictures(manifest, target, bad), set(bad)


def test_a_run_skips_bad_rows_and_resumes_as_if_it_had_not_been_stopped(
    damaged: tuple[Path, set[int]], models: Path, tmp_path: Path, manifest: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    changes: dict[str, Any] = {
        "steps": 5,
        "batch_size": 4,
        "checkpoint_every": 2,
        "max_skipped": 0.5,
    }
    whole, stopped = (config(damaged[0], models, tmp_path / x, **changes) for x in ("a", "b"))
    loop.train(whole)
    on_call(monkeypatch, 4, fail(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(stopped)
    with open(stopped.folder / "skipped.jsonl", "a") as file:
        file.write('{"step": 1, "manifest_row": "x"}\n{"step": 6}\n[]\n{"st')  # killed as it wrote
    assert trainer.run.main(flags(stopped)) == 0
    said = capsys.readouterr()
    text = (stopped.folder / "skipped.jsonl").read_text()
    (stopped.folder / "skipped.jsonl").write_text(
        text.replace('{"step": 1, "manifest_row": "x"}\n', "").replace("[]\n", "")
    )
    assert_equal_runs(whole.folder, stopped.folder)

    skipped = lines(whole.folder / "skipped.jsonl")
    assert re.search(rf"^skipped: {len(skipped)} rows of the manifest", said.out, re.MULTILINE)
    rows = [line["manifest_row"] for line in skipped]
    assert len(rows) == len(set(rows)) > 3 and set(rows) <= damaged[1]
    table = one_table(manifest)
    for line in skipped:
        row = line["manifest_row"]
        assert 1 <= line["step"] <= 5 and line["row"] == row and line["part"] == "m.parquet"
        assert line["patch_id"] == table["patch_id"][row].as_py()
        assert line["role"] == table["role"][row].as_py()
        assert re.match("(has|is) .*picture", line["reason"])


def test_too_many_bad_rows_stop_a_run_with_a_checkpoint(
    damaged: tuple[Path, set[int]], models: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"steps": 5, "batch_size": 4, "checkpoint_every": 100}
    settings = config(damaged[0], models, tmp_path / "run", **changes)
    message = (
        r"m\.parquet: \d+ of \d+ rows cannot be trained on, and --max-skipped 0.001 allows 4; row"
    )
    for attempt in (loop.train, loop.train, plan.describe):  # the same again, before any step
        with pytest.raises(UserError, match=message) as refused:
            attempt(settings)
        assert "\n" not in str(refused.value)
        state = checkpoint.load(settings.folder)
        assert state is not None and state["step"] < 5
    assert len(lines(settings.folder / "skipped.jsonl")) > 4
    more = {"max_skipped": 0.5}
    loop.train(settings.model_copy(update=more))
    whole = settings.model_copy(update={"out": tmp_path / "whole", **more})
    loop.train(whole)
    # The stop wrote a line for its step and no other.
    assert_equal_runs(whole.folder, settings.folder)


@pytest.mark.parametrize(
    ("rows", "share", "most"),
    [(56, 0.001, 4), (100, 0.001, 4), (10_000, 0.001, 10), (10_000, 0.0, 0), (100, 0.1, 10)],
)
def test_how_many_rows_may_be_skipped(rows: int, share: float, most: int) -> None:
    assert most_skipped(rows, share) == most


def test_bad_rows_that_the_small_columns_show_are_counted_at_once(
    manifest: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    table = one_table(manifest)
    table = replaced(table, "role", {3: None, 40: "far"})
    pq.write_table(replaced(table, "caption", {5: " "}), tmp_path / "m.parquet")
    settings = config(tmp_path / "m.parquet", models, tmp_path / "run", steps=1)
    assert trainer.run.main([*flags(settings), "--dry-run"]) == 0
    assert "3 of them unusable" in capsys.readouterr().out
    assert trainer.run.main([*flags(settings), "--dry-run", "--max-skipped", "0"]) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"3 of \d+ rows cannot be .*, and --max-skipped 0 allows 0; row 3 is nei", said
    )
    assert not settings.folder.exists()
    loop.train(settings)
    skipped = lines(settings.folder / "skipped.jsonl")
    assert [(x["step"], x["row"], x["role"]) for x in skipped][:2] == [(0, 3, None), (0, 40, None)]


# Another run --------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_run_at_a_time(
    manifest: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=1)
    named = rf"run: being trained by process {os.getpid()} on \S+ since \S+ \S+; wait for it, stop"
    with loop.sole_run(settings.folder):
        for more in ([], ["--dry-run"]):
            assert trainer.run.main([*flags(settings), *more]) == 1
            assert re.search(named, capsys.readouterr().err)
        assert {p.name for p in settings.folder.iterdir()} == {"lock", "lock.json"}
    child = os.fork()
    if not child:  # a run that is killed
        held = sole_writer(settings.folder, "being trained")
        held.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (settings.folder / "lock.json").exists()
    loop.train(settings)
    assert not (settings.folder / "lock.json").exists()


# A full disk --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    filler = folder / "filler"
    state = os.statvfs(folder)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - leave)
    return filler


@pytest.mark.parametrize("leave", [0, 3_000_000])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    manifest: Path, models: Path, small_disk: Path, undisturbed: Path, leave: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With nothing left a small file fails first, with 3 MB a checkpoint does."""
    settings = config(manifest, models, small_disk / "run", **PLAIN)
    on_call(monkeypatch, 4, lambda: fill(small_disk, leave))
    assert trainer.run.main(flags(settings)) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert re.match(rf"error: {settings.folder}/\S+: .*cannot be written \(", said), said
    assert re.search(r"; [\d.]+ \w+ free, [\d.]+ \w+ needed\)?; free some|free\); free some", said)
    assert ("checkpoint.pt" in said) == bool(leave), said
    state = checkpoint.load(settings.folder)
    assert state is not None and state["step"] == 2
    if not leave:  # the whole disk is full at the start, too
        assert trainer.run.main(flags(settings)) == 1
        assert capsys.readouterr().err.count("error: ") == 1
    (small_disk / "filler").unlink()
    loop.train(settings)
    assert_equal_runs(undisturbed, settings.folder)


@pytest.mark.parametrize(
    ("module", "name", "path"),
    [
        (checkpoint, "write_bytes", "config.json"),
        (run_log, "write_bytes", "README.md"),
        (run_log, "write_comparison", r"samples/step0000000\.png"),
        (run_log.RecordWriter, "write", r"events\.out\.tfevents\.\S+"),
        (loop, "save_network", r"model\.safetensors"),
        (loop, "write_tensors", r"weights/step0000001\.safetensors"),
    ],
)
def test_whatever_cannot_be_written_is_named(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    module: Any, name: str, path: str,
) -> None:  # fmt: skip
    settings = config(manifest, models, tmp_path / "run", steps=1, weights_every=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(UserError, match=rf"/{path}: cannot be written \(No space left .* free"):
        loop.train(settings)


# Memory -------------------------------------------------------------------------------------------

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2.00 GiB"),
    MemoryError("Unable to allocate 9 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_where_memory_runs_out_the_flags_to_lower_are_named(
    manifest: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    on_call(monkeypatch, 2, fail(error))
    settings = config(manifest, models, tmp_path / "run", batch_size=4, ema=0.9)
    lower = r"pass --accumulate 2 or lower --batch-size \(4 now\) or omit --ema"
    said = rf"step 2: this machine is out of memory \(.*; {lower}"
    with pytest.raises(UserError, match=said) as refused:
        loop.train(settings)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(loop, "load_sr", lambda _: fail(error)())
    with pytest.raises(UserError, match="loading the networks: this machine is out of") as refused:
        loop.train(config(manifest, models, tmp_path / "two", batch_size=2))
    assert "--batch-size" not in str(refused.value)  # equation (1) needs 2


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_any_command_that_runs_out_of_memory_says_so(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(fail(error), less=["--tile"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: out of memory \(.*\); lower --tile, or close other .*\n", said)


# Ctrl-C -------------------------------------------------------------------------------------------


def test_a_second_ctrl_c_stops_at_once_and_the_run_resumes(
    manifest: Path, models: Path, tmp_path: Path, undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = config(manifest, models, tmp_path / "run", **PLAIN)

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    on_call(monkeypatch, 4, twice)
    assert trainer.run.main(flags(settings)) == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "stopped; run the same command again to resume"
    assert "Traceback" not in said
    state = checkpoint.load(settings.folder)
    assert state is not None and state["step"] == 2  # not the step that was interrupted
    loop.train(settings)
    assert_equal_runs(undisturbed, settings.folder)


def test_old_configs_have_the_new_default() -> None:
    assert TrainConfig(manifest=Path("x")).max_skipped == 0.001
