"""The Prefect flow, for real: in process with its embedded server, and as a served deployment."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Prefect with a database of its own; what the user has set up is not touched."""
    shutil.copy(ROOT / "prefect.toml", tmp_path)  # as in the project's folder: enables the plugin
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return kept | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def run(
    argv: list[str], cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200
    )


def counts(manifest: Path) -> dict[str, int]:
    sql = f"SELECT role, count(*) FROM '{manifest}/*.parquet' GROUP BY role"
    return dict(duckdb.sql(sql).fetchall())


def test_pipeline_run_builds_through_the_flow(
    photographs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pipeline.run", "--images", str(photographs)]
    command += ["--profile", "offline", "--k", "2", "--limit", "3", "--shard-size", "2"]
    done = run(command, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert "photographs: 3 ok" in done.stdout and "6 lr, 6 hr" in done.stdout
    assert "UNTRAINED" in done.stderr and "build-patches" in done.stderr
    assert counts(tmp_path / "data/patches.parquet") == {"lr": 6, "hr": 6}
    assert "Traceback" not in done.stderr


def test_errors_inside_the_flow_are_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    Image.new("RGB", (100, 80)).save(tmp_path / "small.png")
    command = [sys.executable, "-m", "pipeline.run", "--images", ".", "--profile", "offline"]
    done = run(command, tmp_path, environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: none of 1 photographs gave a patch (1 too_small); most often")


def test_a_server_that_does_not_answer_is_named(
    photographs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pipeline.run", "--images", str(photographs)]
    nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = run([*command, "--profile", "offline"], tmp_path, environment | nowhere)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "error: Failed to reach API at http://127.0.0.1:9/api" in done.stderr


@contextmanager
def process(argv: list[str], cwd: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A server in the background; yields its log."""
    log = cwd / f"{Path(argv[0]).name}-{abs(hash(tuple(argv)))}.log"
    with open(log, "w") as out:
        started = subprocess.Popen(
            argv, cwd=cwd, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield log
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_for(what: str, ready: "object", log: Path, seconds: int = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():  # type: ignore[operator]
            return
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come up:\n{log.read_text()}")


def test_the_deployment_runs_by_its_bare_name(
    photographs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """As the README types it: serve, then `prefect deployment run build-patches -p … --watch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment |= {"PREFECT_API_URL": api}
    server = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]

    def healthy() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{api}/health", timeout=2).status == 200)
        except OSError:
            return False

    def deployments() -> list[dict[str, object]]:
        request = urllib.request.Request(
            f"{api}/deployments/filter", b"{}", {"Content-Type": "application/json"}
        )
        found: list[dict[str, object]] = json.load(urllib.request.urlopen(request, timeout=10))
        return found

    with process(server, tmp_path, environment) as log:
        wait_for("the server", healthy, log)
        serve = [sys.executable, "-m", "pipeline.flows"]
        with process(serve, tmp_path, environment) as log:
            wait_for("the deployment", lambda: deployments(), log)
            (deployment,) = deployments()
            form = deployment["parameter_openapi_schema"]["properties"]  # type: ignore[index]
            assert form["k"]["description"] == "patches per role and photograph"
            assert form["k"]["minimum"] == 1 and form["k"]["default"] == 8
            assert form["strategy"]["enum"] == ["depth", "random", "overlap", "inclusion"]
            assert deployment["parameter_openapi_schema"]["required"] == ["images"]  # type: ignore[index]

            command = [str(BIN / "prefect"), "deployment", "run", "build-patches", "--watch"]
            for key, value in (
                ("images", json.dumps([str(photographs)])), ("profile", "offline"), ("k", 2),
                ("limit", 2), ("out", str(tmp_path / "served.parquet")),
            ):  # fmt: skip
                command += ["-p", f"{key}={value}"]
            done = run(command, tmp_path, environment)
            assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
            assert counts(tmp_path / "served.parquet") == {"lr": 4, "hr": 4}
            nobody = run([*command[:3], "no-such-name"], tmp_path, environment)
            assert nobody.returncode != 0
