"""The flow inside this process: faults, retries, Ctrl-C, and what is only shown."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lasr.errors import UserError
from pipeline.build import plan
from pipeline.build import shard as stages
from pipeline.build.publish import Summary
from pipeline.config import BuildConfig
from pipeline.flows import artifacts
from pipeline.flows import flow as flows
from tests.system.flow.conftest import Project, last_run

pytestmark = pytest.mark.xdist_group("prefect")  # one server for all of them


def fault(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[str]:
    """Let parts fail that often, half-way; returns a list that grows with every try."""
    tries: list[str] = []
    make = stages.build_shard

    def failing(build: Any, shard: Any, tick: Any) -> str:
        tries.append(shard.name)
        if len(tries) <= times:
            tick(1)
            time.sleep(0.3)
            raise error
        return make(build, shard, tick)

    monkeypatch.setattr(stages, "build_shard", failing)
    return tries


def test_a_build_is_prepared_once(
    here: Project, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command finds photographs and weights before Prefect starts; the flow uses them."""
    prepared = plan.prepare(config)
    monkeypatch.setattr(plan, "prepare", lambda _: pytest.fail("prepared again"))
    assert flows.build(config, prepared)["patches"] == {"lr": 7, "hr": 7}


def test_a_passing_fault_is_tried_again(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tries = fault(monkeypatch, OSError(5, "Input/output error"), times=1)
    assert flows.build(config)["patches"] == {"lr": 7, "hr": 7}
    assert len(tries) == 8 and tries[0] == tries[1]
    assert "Input/output error" in caplog.text and "Traceback" not in caplog.text
    assert "photographs: 7/7 img" in capfd.readouterr().err  # the first try is not counted


def test_a_fault_that_stays_is_one_line(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = fault(monkeypatch, OSError(28, "No space left on device"), times=9)
    with pytest.raises(UserError, match="No space left on device"):
        flows.build(config)
    assert tries.count(tries[0]) == 3
    assert len(set(tries)) < 7  # another may have begun meanwhile, not all
    assert "Traceback" not in caplog.text
    assert last_run(here)["state"]["type"] == "FAILED"


def test_what_the_user_must_mend_is_not_tried_again(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = fault(monkeypatch, UserError("weights are not here"), times=9)
    with pytest.raises(UserError, match="weights are not here"):
        flows.build(config)
    assert len(tries) == 1  # nor is another part begun, however late the flow hears of it
    assert "Traceback" not in caplog.text


def test_ctrl_c_stops_after_the_photographs_in_work(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The run is Cancelled, what is finished is kept, and the same command goes on."""
    tries, make = [], stages.build_shard

    def pressing(job: Any, shard: Any, tick: Any) -> str:
        tries.append(shard.name)
        if len(tries) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # the main thread handles it
        return make(job, shard, tick)

    monkeypatch.setattr(stages, "build_shard", pressing)
    with pytest.raises(KeyboardInterrupt, match="1 of 7 parts made"):
        flows.build(config)
    assert len(tries) == 2 and last_run(here)["state"]["type"] == "CANCELLED"
    error = capfd.readouterr().err
    assert error.count("stopping after the photographs in work; Ctrl-C again stops at once") == 1
    assert "Traceback" not in error + caplog.text and "ERROR" not in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert flows.build(config)["patches"] == {"lr": 7, "hr": 7}
    assert len(tries) == 2 + 6


def test_a_second_ctrl_c_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(flows.os, "_exit", end)
    with pytest.raises(SystemExit, match="130"), flows._until_stopped():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.endswith("stopped at once; run the same command to resume\n")


def test_out_of_memory_names_what_to_lower(
    here: Project, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch, MemoryError("Unable to allocate 8.00 GiB"), times=9)
    with pytest.raises(UserError, match=r"out of memory \(Unable .*\); lower --workers"):
        flows.build(config)


def test_a_manifest_in_object_storage_has_its_counts_alone(
    here: Project, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from prefect import flow

    summary = Summary("s3://b/p.parquet", "s3://b/i.parquet", 1, {"ok": 3}, {"lr": 6, "hr": 6})
    run = flow(lambda: artifacts.show_counts(summary), name="counts")
    run()
    (table,) = here.ask("artifacts", artifacts={"key": {"any_": ["build-patches-counts"]}},
                        sort="CREATED_DESC", limit=1)  # fmt: skip
    assert json.loads(table["data"]) == [{"status": "ok", "photographs": 3}]
    assert "6 lr patches" in table["description"] and "not shown" not in caplog.text


def test_errors_inside_the_flow_are_one_line(
    here: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder := tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 80)).save(folder / "sm\x1b[2Jall.png")
    (folder / "notes.txt").write_text("not a picture")
    config = BuildConfig(images=[str(folder)], out=tmp_path / "o.parquet", profile="test")
    with pytest.raises(UserError, match=r"none of 1 photograph gave a patch \(1 too_small\)"):
        flows.build(config)
    assert "Traceback" not in caplog.text and "\x1b[2J" not in caplog.text
    assert (
        "1 too_small (100x80: a patch needs 224 pixels each way): sm\\x1b[2Jall.png" in caplog.text
    )
    assert "passed over: 1 .txt" in caplog.text


def test_a_bug_is_not_hidden(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault(monkeypatch, KeyError("a bug"), times=9)
    with pytest.raises(KeyError, match="a bug"):
        flows.build(config)
    assert "Traceback" in caplog.text


def test_what_is_only_shown_cannot_fail_a_build(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no artifacts today")

    monkeypatch.setattr("pipeline.report.overview.describe", broken)
    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(artifacts.ui, name, broken)
    assert flows.build(config)["patches"] == {"lr": 7, "hr": 7}
    assert "not shown in Prefect's UI: no artifacts today" in caplog.text


def test_parameters_that_no_server_checked(
    here: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parameters = {"images": ["nowhere"], "profile": "test", "out": "o.parquet"}
    for wrong, message in (
        ({"k": 0}, "k: Input should be greater than or equal to 1"),
        ({}, "nowhere: no such folder"),
        ({"images": ["/etc"]}, "--images /etc: outside of what this deployment may use"),
    ):
        state = flows.build_patches(**(parameters | wrong), return_state=True)
        assert state.is_failed()
        assert message in (state.message or ""), state.message
