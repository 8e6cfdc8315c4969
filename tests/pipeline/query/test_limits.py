"""A question has limits of memory, disk and time, and ends with Ctrl-C."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
import pytest

from lasr.device import machine_memory
from pipeline.query import answer
from pipeline.query.__main__ import main
from pipeline.query.limits import limit
from pipeline.query.views import connect
from pipeline.report.__main__ import main as report

ROOT = Path(__file__).parents[3]
ENDLESS = "SELECT max(a.range + b.range) FROM range(10000000) AS a, range(10000000) AS b"
LARGE = "SELECT * FROM range(3000000) AS r(a) ORDER BY hash(a)"  # 24 MB, and as much to sort


def ask(manifest: Path, capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main([*argv, "--manifest", str(manifest)])
    return status, *capfd.readouterr()


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        ([ENDLESS, "--timeout", "0.3"], 1, "no answer after 0.3 s; allow more with --timeout"),
        (
            ["SELECT list(range) FROM range(50000000)", "--memory-limit", "60MB"],
            1, "needs more memory than --memory-limit allows; raise it",
        ),
        (
            [f"SELECT patch_id FROM patches, ({LARGE})", "--save", "x.parquet", "--timeout", "0.3"],
            1, "no answer after 0.3 s",
        ),
        (["SELECT 1", "--timeout", "nan"], 2, "--timeout nan: input should be a finite number"),
        (["SELECT 1", "--timeout", "-1"], 2, "--timeout -1: input should be greater than 0"),
        (["SELECT 1", "--memory-limit", "much"], 2, "--memory-limit much: give a number and a"),
        (["SELECT 1", "--memory-limit", "0MB"], 2, "--memory-limit 0MB: give a number and a unit"),
    ],
)  # fmt: skip
def test_the_line_names_the_option(
    argv: list[str], status: int, said: str, manifest: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, out, error = ask(manifest, capfd, *argv)
    assert found == status and out == "" and error.startswith("error: ") and said in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_the_disk_for_intermediate_results_is_limited(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usage = type("Usage", (), {"free": 20e6})
    monkeypatch.setattr("pipeline.query.limits.shutil.disk_usage", lambda path: usage)
    status, _, error = ask(manifest, capfd, LARGE, "--memory-limit", "40MB", "--format", "csv")
    assert status == 1 and "intermediate results exceed half of the free disk" in error


@pytest.mark.parametrize("allow", [[], ["--allow-files"]])
def test_questions_have_half_of_the_memory_and_spill_outside_of_the_project(
    allow: list[str], manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = ("memory_limit", "temp_directory", "max_temp_directory_size")
    sql = " UNION ALL ".join(f"SELECT current_setting('{name}') AS x" for name in names)
    status, out, _ = ask(manifest, capfd, sql, "--format", "csv", *allow)
    memory, folder, _disk = out.splitlines()[1:]
    value, unit = memory.split()
    half = machine_memory() / 2
    assert status == 0 and abs(float(value) * 2 ** {"GiB": 30, "MiB": 20}[unit] / half - 1) < 0.05
    assert Path(folder).parent == Path(tempfile.gettempdir())
    with connect(manifest) as connection:  # of the report and of Prefect's pages
        (found,) = connection.sql("SELECT current_setting('memory_limit')").fetchone() or ("",)
        assert found == memory
    assert main(["SELECT 1", "--manifest", str(manifest), "--memory-limit", "64MB"]) == 0


def test_spilled_results_are_removed(
    manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with connect(manifest) as connection:
        limit(connection, "40MB", tmp_path)
        assert len(connection.sql(LARGE).fetchmany(3)) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_reports_memory_is_limited(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def too_much(*_: object) -> None:
        raise duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate data")

    monkeypatch.setattr("pipeline.report.page._facts", too_much)
    argv = ["--manifest", str(manifest), "--out", str(tmp_path / "x.html")]
    assert report([*argv, "--memory-limit", "100MB"]) == 1
    assert "more memory than --memory-limit allows; raise it" in capfd.readouterr().err


@pytest.mark.parametrize("form", ["table", "csv"])
def test_ctrl_c_ends_a_question(
    form: str, manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    running = threading.Event()
    real = answer.read_only

    def read_only(*arguments: object) -> str:
        running.set()
        return real(*arguments)  # type: ignore[arg-type]

    def press() -> None:
        running.wait()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "read_only", read_only)
        status, out, error = ask(manifest, capfd, ENDLESS, "--format", form)
    assert (status, out) == (130, "") and error.startswith("stopped; ") and error.count("\n") == 1


def test_a_long_answer_is_streamed(manifest: Path) -> None:
    """300 MB through a pipe, and `head`: neither memory nor the disk hold the answer."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    argv = [sys.executable, "-m", "pipeline.query", "--manifest", str(manifest), "--format", "csv"]
    sql = "SELECT repeat('x', 1000) AS x FROM range(300000)"
    command = subprocess.Popen([*argv, sql], cwd=ROOT, stdout=subprocess.PIPE)
    assert command.stdout
    read = 0
    while content := command.stdout.read(1 << 20):
        read += len(content)
    assert command.wait() == 0 and read == 2 + 300_000 * 1001
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak * 1024 < max(before * 1024, 450_000_000)
    command = subprocess.Popen(
        [*argv, sql], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout and command.stderr and command.stdout.readline() == b"x\n"
    command.stdout.close()
    assert command.stderr.read() == b"" and command.wait() == 0


def test_a_table_does_not_hold_what_it_cuts(
    manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """DuckDB would hold 10,000 whole rows, here 300 MB."""
    sql = "SELECT repeat('x', 1000000) AS x, [1, 2] AS y, '\\xAA'::BLOB AS z FROM range(300)"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, out, _ = ask(manifest, capfd, sql)
    assert status == 0 and "varchar" in out and "int32[]" in out and "blob" in out and "…" in out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
