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
from typing import Any

import duckdb
import pytest

from lasr.device import machine_memory
from lasr.errors import UserError
from pipeline.query import answer, save, views
from pipeline.query.__main__ import main
from pipeline.query.limits import limit, watched
from pipeline.query.views import connect
from pipeline.report.__main__ import main as report
from schemas.manifest import open_manifest

ROOT = Path(__file__).parents[3]
ENDLESS = "SELECT max(a.range + b.range) FROM range(10000000) AS a, range(10000000) AS b"
LATE = ("--save", "x.parquet", "--timeout", "0.3")
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
            [f"SELECT patch_id FROM patches, ({ENDLESS})", *LATE],
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


def test_an_answer_at_the_last_moment_counts() -> None:
    """It was printed or saved already: an error would say that it was not."""
    done: list[str] = []

    def late(stop: threading.Event) -> None:
        assert stop.wait(10)
        done.append("saved")

    def never(stop: threading.Event) -> None:
        assert stop.wait(10)
        raise duckdb.InterruptException("stopped")

    with duckdb.connect() as connection:
        watched(late, connection, 0.1)
        assert done == ["saved"]
        with pytest.raises(UserError, match=r"no answer after 0\.1 s"):
            watched(never, connection, 0.1)


def test_nothing_is_saved_once_a_question_was_stopped(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB's interrupt has nothing to end between two statements."""
    stop, check = threading.Event(), save._check_unique

    def stopped(*given: Any) -> None:
        check(*given)
        stop.set()

    monkeypatch.setattr(save, "_check_unique", stopped)
    opened = open_manifest(manifest, columns=())
    with answer.with_views(opened) as connection, pytest.raises(duckdb.InterruptException):
        rows = connection.sql("SELECT patch_id FROM patches")
        save.save(rows, opened, "", tmp_path / "x.parquet", stop)
    assert list(tmp_path.iterdir()) == []


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
        (found,) = connection.sql("SELECT current_setting('memory_limit')").fetchall()[0]
        assert found == memory
    assert main(["SELECT 1", "--manifest", str(manifest), "--memory-limit", "64MB"]) == 0


def test_spilled_results_are_removed(
    manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with connect(manifest) as connection:
        limit(connection, "40MB", tmp_path)
        sql = "SELECT count(n) FROM (SELECT row_number() OVER (ORDER BY hash(a)) AS n FROM r)"
        connection.sql(f"WITH r AS (FROM range(3000000) AS r(a)) {sql}").fetchall()
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


def test_the_report_gives_up_after_its_time(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def endless(_: object, __: object, data: Any) -> None:
        data.connection.sql(ENDLESS).fetchall()

    monkeypatch.setattr("pipeline.report.page._facts", endless)
    argv = ["--manifest", str(manifest), "--out", str(tmp_path / "x.html"), "--timeout", "0.3"]
    assert report(argv) == 1
    assert "no answer after 0.3 s; allow more with --timeout" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("command", ["query", "report"])
def test_ctrl_c_while_the_manifest_is_opened(
    command: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """DuckDB's client meets it there, in the main thread, and raises an error of its own."""

    def pressed(*_: object) -> None:
        raise RuntimeError("Query interrupted")

    monkeypatch.setattr(views, "companion", pressed)
    argv = ["SELECT 1"] if command == "query" else ["--out", str(tmp_path / "x.html")]
    assert (main if command == "query" else report)([*argv, "--manifest", str(manifest)]) == 130
    assert capfd.readouterr().err.startswith("stopped; ")


LONG = "SELECT repeat('x', 1000) AS x FROM range(600000)"
MEASURED = r"""
import re, sys
from pathlib import Path
from pipeline.query.__main__ import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(status)
"""


def test_a_long_answer_is_streamed(manifest: Path) -> None:
    """600 MB through a pipe, and `head`: neither memory nor the disk hold the answer."""
    argv = [sys.executable, "-c", MEASURED, LONG, "--manifest", str(manifest), "--format", "csv"]
    pipe = subprocess.PIPE
    command = subprocess.Popen(argv, cwd=ROOT, stdout=pipe, stderr=pipe)
    assert command.stdout and command.stderr
    read = 0
    while content := command.stdout.read(1 << 20):
        read += len(content)
    assert command.wait() == 0 and read == 2 + 600_000 * 1001
    assert int(command.stderr.read()) < 500_000  # kB; 200,000 are libraries
    command = subprocess.Popen(argv, cwd=ROOT, stdout=pipe, stderr=pipe)
    assert command.stdout and command.stderr and command.stdout.readline() == b"x\n"
    command.stdout.close()
    assert command.stderr.read().strip().isdigit() and command.wait() == 0


def test_a_table_does_not_hold_what_it_cuts(
    manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """DuckDB would hold 10,000 whole rows, here 300 MB."""
    sql = "SELECT repeat('x', 1000000) AS x, [1, 2] AS y, '\\xAA'::BLOB AS z FROM range(300)"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, out, _ = ask(manifest, capfd, sql)
    assert status == 0 and "varchar" in out and "int32[]" in out and "blob" in out and "…" in out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_limits_hold_in_jupyter_without_its_widgets() -> None:
    code = """
import sys, types
ipython = sys.modules["IPython"] = sys.modules["ipykernel"] = types.ModuleType("IPython")
ipython.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["ipywidgets"] = None
import duckdb
from pipeline.query.limits import limit
connection = duckdb.connect()
limit(connection, "500MB")
print(connection.sql("SELECT current_setting('memory_limit')").fetchall()[0][0])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]  # like Jupyter, it runs no file
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("476") and not done.stderr, done.stderr
