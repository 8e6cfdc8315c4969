"""The flow `train-and-evaluate`: its processes, what it shows, how it ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import trainer.evaluate.__main__
import trainer.run
from lasr.errors import UserError
from pipeline.flows import training
from pipeline.flows.schedule import ServeConfig
from pipeline.flows.training import Ended, TrainingConfig, run_process
from tests.system.flow.conftest import Project, last_run

pytestmark = pytest.mark.xdist_group("prefect")  # one server for all of them


def config(folder: Path, **more: Any) -> TrainingConfig:
    names = {"manifest": str(folder / "p.parquet"), "out": str(folder / "run"), "steps": 40}
    return TrainingConfig(**(names | {"evaluate_on": [str(folder / "lr")]} | more))


def test_the_trainer_takes_the_arguments(tmp_path: Path) -> None:
    """Written in two packages that do not know each other, the flags fit."""
    given = config(tmp_path, metrics=["niqe"], reference=[str(tmp_path / "hr")], profile="offline")
    module, *argv = given.training()
    parsed, _ = trainer.run.main.flags.parse(argv)
    assert module == "trainer.run" and parsed.folder == given.folder
    for name in ("profile", "steps", "batch_size", "lr", "seed", "device"):
        assert getattr(parsed, name) == getattr(given, name)
    assert TrainingConfig().folder == trainer.run.main.flags.parse(
        ["--manifest", "data/patches.parquet"]
    )[0].folder  # fmt: skip
    module, *argv = given.evaluation()
    scored, _ = trainer.evaluate.__main__.main.flags.parse(argv)
    assert module == "trainer.evaluate" and scored.weights == ["bicubic", str(given.folder)]
    defaults = trainer.run.main.flags.parse(["--manifest", "a"])[0]
    for name in ("steps", "batch_size", "lr", "seed"):
        assert TrainingConfig.model_fields[name].default == getattr(defaults, name)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """A module with this code, for `run_process`."""

    def write(code: str) -> list[str]:
        (tmp_path / "some_program.py").write_text(code, encoding="utf-8")
        return ["some_program"]

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return write


def test_lines_and_the_end_of_a_process(script: Callable[[str], list[str]]) -> None:
    lines: list[str] = []
    run_process(script("print('one\\n\\ntwo é')"), lines.append)
    assert lines == ["one", "two é"]
    with pytest.raises(Ended, match="no such folder") as failed:
        run_process(script("import sys; sys.exit(print('error: no such folder') or 1)"), print)
    with pytest.raises(Ended) as stopped:
        run_process(script("raise SystemExit(130)"), print)
    assert (failed.value.stopped, stopped.value.stopped) == (False, True)


def test_a_process_ends_with_a_run_that_is_cancelled(script: Callable[[str], list[str]]) -> None:
    """Prefect sends a signal, which raises where the lines are read."""
    code = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("checkpoint", flush=True)))
print(os.getpid(), flush=True)
time.sleep(1000)
"""
    seen: list[int] = []

    def cancelled(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_process(script(code), cancelled)
    assert not psutil.pid_exists(seen[0])


def test_a_run_shows_progress_curve_and_scores(
    here: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LASR_ROOTS", str(tmp_path))
    given, started = config(tmp_path), []

    def run(arguments: list[str], on_line: Callable[[str], object]) -> None:
        started.append(arguments)
        on_line("INFO: after step 0")
        on_line("steps: 10/40 step ( 0.10s/step, ETA 00:03)")
        (given.folder / "evaluation").mkdir(parents=True, exist_ok=True)
        lines = [{"step": 10, "total": 2.0, "vgg": 1.0}, {"step": 40, "kind": "validation"}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (given.folder / "stats.jsonl").write_text(text, encoding="utf-8")
        means = "method,metric,mean\nbicubic,niqe,5.5\nrun,niqe,4.25\n"
        (given.folder / "evaluation/means.csv").write_text(means, encoding="utf-8")

    monkeypatch.setattr(training, "run_process", run)
    state = training.train_and_evaluate(**given.model_dump(), return_state=True)
    assert state.is_completed() and state.message.endswith("run/model.safetensors after 40 steps")
    assert started == [given.training(), given.evaluation()]
    about = last_run(here)
    assert about["name"] == "train run: 40 steps, evaluate"
    found = here.ask("artifacts", artifacts={"flow_run_id": {"any_": [about["id"]]}})
    by_key = {artifact["key"].removeprefix("train-and-evaluate-"): artifact for artifact in found}
    assert by_key.keys() == {"progress", "curve", "scores"}
    assert by_key["progress"]["data"] == 25
    assert json.loads(by_key["scores"]["data"]) == [
        {"method": "bicubic", "niqe": 5.5}, {"method": "run", "niqe": 4.25},
    ]  # fmt: skip
    assert "after step 0" in caplog.text and "not shown" not in caplog.text


def test_how_a_run_ends(
    here: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LASR_ROOTS", str(tmp_path))
    for status, kind in ((1, "FAILED"), (130, "CANCELLED")):

        def fail(*_: object, status: int = status) -> None:
            raise Ended(status, "no weights here")

        monkeypatch.setattr(training, "run_process", fail)
        given = config(tmp_path).model_dump()
        state = training.train_and_evaluate(**given, return_state=True)
        assert (state.type, state.message) == (kind, "no weights here")
    outside = config(tmp_path, reference=["/etc"]).model_dump()
    state = training.train_and_evaluate(**outside, return_state=True)
    assert "--reference /etc: outside of what this deployment may use" in state.message
    assert "Traceback" not in caplog.text


def test_schedules() -> None:
    nightly = ServeConfig(images=["a", "s3://b/c"], cron="0 3 * * *", timezone="Europe/Berlin")
    (schedule,) = nightly.schedules()
    assert schedule.cron == "0 3 * * *" and schedule.timezone == "Europe/Berlin"
    assert schedule.parameters["images"] == [str(Path.cwd() / "a"), "s3://b/c"]
    (schedule,) = ServeConfig(images=["a"], every=3600).schedules()
    assert schedule.interval.total_seconds() == 3600
    assert ServeConfig().schedules() == []
    both: dict[str, Any] = {"images": ["a"], "cron": "x", "every": 60}
    for wrong in ({"cron": "0 3 * * *"}, {"images": ["a"]}, both):
        with pytest.raises(ValueError, match=r"--images|two schedules"):
            ServeConfig(**wrong)


def test_errors_of_others_are_raised_again() -> None:
    from pipeline.flows.form import user_error

    assert "No such file" in str(user_error(FileNotFoundError(2, "No such file", "x")))
    assert str(user_error(UserError("a", "b"))) == "a; b"
    with pytest.raises(KeyError):
        user_error(KeyError("a bug"))
