"""The doctor: each thing broken on purpose, and the line that says so."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lasr.doctor import __main__ as doctor
from lasr.doctor import environment as installed
from lasr.doctor import machine as room
from lasr.doctor.finding import Finding
from lasr.weights.locate import TABLE
from tests.support.servers import free_port
from tests.support.upstream import any_content, save_vgg19

ROOT = Path(__file__).parents[3]
NAMES = ("PREFECT_", "HF_", "LASR_", "TORCH_FORCE", "TRANSFORMERS_OFFLINE")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with nothing in it, and no variable set."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(NAMES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path


def examine(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[Finding]]:
    status = doctor.main([*argv, "--json"])
    return status, [Finding(**finding) for finding in json.loads(capsys.readouterr().out)]


def faults(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.about: finding for finding in findings if finding.level == "wrong"}


def test_a_machine_where_the_offline_profile_runs_is_well(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--profile", "offline"]) == 0
    text = capsys.readouterr().out
    for about in ("Python", "packages", "PyTorch", "torchvision", "OpenCV", "DuckDB", "Prefect"):
        assert f"✓ {about}: " in text, text
    for about in ("disk", "memory", "data folder", "variables", "weights tiny-clip"):
        assert f"✓ {about}: " in text
    assert "✗" not in text and "its operators run" in text
    assert not list(empty.iterdir())  # it changes nothing


def test_missing_weights_are_named_with_their_command(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", str(empty))
    (empty / "vgg19").mkdir()
    save_vgg19(empty / "vgg19" / "vgg19-dcbb9e9d.pth", width=8)
    any_content(monkeypatch, "vgg19")
    status, findings = examine(capsys, "--profile", "paper")
    missing = {about for about in faults(findings) if about.startswith("weights")}
    names = ("depthfm-v1", "sd15-vae", "clip-vit-l-14", "rrdb-psnr-x4")
    assert status == 1 and missing == {f"weights {name}" for name in names}
    for name in names:
        fault = faults(findings)[f"weights {name}"]
        assert f"`python -m lasr.weights fetch {name}" in fault.fix
        assert f"{TABLE[name].megabytes} MB" in fault.found
    (vgg,) = (f for f in findings if f.about == "weights vgg19")
    assert vgg.level == "ok" and vgg.found.startswith("1 MB at ")
    _, findings = examine(capsys, "--profile", "paper", "--program", "trainer")
    assert not any("depthfm" in finding.about for finding in findings)


def test_a_full_disk_says_what_would_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    status, findings = examine(capsys, "--profile", "offline", "--photographs", "10000000000")
    fault = faults(findings)["disk"]
    assert status == 1 and "15000000.1 GB needed" in fault.found and "free some" in fault.fix


def test_what_training_writes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = type("Usage", (), {"free": 10e9})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: gib)
    (trainer,) = room.disk(Path("data"), "default", ("clip", "vgg", "sr"), 1000)
    (pipeline,) = room.disk(Path("data"), "default", ("depth", "clip"), 1000)
    assert trainer.level == "wrong" and "training 16.2" in trainer.found
    assert pipeline.level == "ok" and "1000 photographs 1.5" in pipeline.found


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_free_memory", lambda: 3000.0)
    small, large = (next(iter(room.memory(p, ("clip", "sr")))) for p in ("offline", "default"))  # type: ignore[arg-type]
    assert small.level == "ok" and large.level == "wrong" and "3.8 GB needed" in large.found


def test_a_folder_that_cannot_be_written(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody, root neither, writes below /proc."""
    status, findings = examine(capsys, "--profile", "offline", "--data", "/proc/data")
    fault = faults(findings)["data folder"]
    assert status == 1 and "/proc/data cannot be written" in fault.found and fault.fix


@contextmanager
def prefect(health: str = "true", version: str = "", status: int = 200) -> Iterator[str]:
    """What answers as Prefect's server does, in one respect; the real one stands in test_flow."""
    version = version or installed.version("prefect")

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write((health if "health" in self.path else f'"{version}"').encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/api"
        running.shutdown()


@pytest.mark.parametrize(
    ("answer", "level", "found"),
    [
        ({}, "ok", "healthy"),
        ({"version": "2.20.1"}, "warning", "is 2.20.1, installed is 3."),
        ({"health": "false"}, "wrong", "is not healthy"),
        ({"status": 401}, "wrong", "answers 401"),
        ({"status": 404}, "wrong", "answers 404"),
    ],
)
def test_prefects_server(
    answer: dict[str, object], level: str, found: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with prefect(**answer) as address:  # type: ignore[arg-type]
        monkeypatch.setenv("PREFECT_API_URL", address)
        status, findings = examine(capsys, "--profile", "offline")
    (finding,) = (f for f in findings if f.about == "Prefect server")
    assert (finding.level, status) == (level, int(level == "wrong"))
    assert found in finding.found and bool(finding.fix) == (level != "ok")


@pytest.mark.parametrize("where", ["environment", "profile"])
def test_a_server_that_is_not_there(
    where: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}/api"
    if where == "environment":
        monkeypatch.setenv("PREFECT_API_URL", address)
    else:
        (empty / "prefect").mkdir()
        profiles = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{address}"\n'
        (empty / "prefect" / "profiles.toml").write_text(profiles)
    status, findings = examine(capsys, "--profile", "offline")
    fault = faults(findings)["Prefect server"]
    assert status == 1 and f"{address} does not answer" in fault.found
    assert "prefect server start" in fault.fix and "unset PREFECT_API_URL" in fault.fix
    assert examine(capsys, "--profile", "offline", "--program", "trainer")[0] == 0


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("PREFECT_API_URL", "127.0.0.1:4200", "wrong"),
        ("HF_ENDPOINT", "mirror", "wrong"),
        ("HF_HUB_OFFLINE", "1", "warning"),
        ("LASR_WEIGHTS", "nowhere", "warning"),
        ("HF_HOME", "/proc/hub", "warning"),
        ("PREFECT_SERVER_API_AUTH_STRING", "me:secret", "warning"),
        ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1", "warning"),
    ],
)
def test_variables_that_are_set_wrongly(
    name: str, value: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [finding.level for finding in room.variables()] == ["ok"]
    monkeypatch.setenv(name, value)
    (finding,) = room.variables()
    assert finding.level == level and name in finding.found and finding.fix


@pytest.mark.parametrize("broken", [("torchvision", "cv2", "duckdb"), ("torch", "pyarrow")])
def test_libraries_that_do_not_load_are_a_line_each_and_stop_nothing_else(
    broken: tuple[str, ...], tmp_path: Path
) -> None:
    message = "operator torchvision::nms does not exist"
    (tmp_path / "first").mkdir()
    for library in broken:
        (tmp_path / "first" / f"{library}.py").write_text(f"raise RuntimeError({message!r})\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'first'}:{ROOT}"}
    command = [sys.executable, "-m", "lasr.doctor", "--profile", "offline"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    lines = done.stdout.splitlines()
    for library in broken:
        names = {"torch": "PyTorch", "cv2": "OpenCV", "pyarrow": "DuckDB", "duckdb": "DuckDB"}
        name = names.get(library, library)
        place = next(i for i, line in enumerate(lines) if line.startswith(f"✗ {name}: "))
        assert message in lines[place] and name in done.stderr
        assert lines[place + 1].startswith("    → ") and "pip install" in lines[place + 1]
        if library == "torchvision":
            assert "it is made for torch" in lines[place]
    assert done.returncode == 1 and "✓ variables" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_it_runs_where_only_the_trainer_is_installed(tmp_path: Path) -> None:
    """Seen from a Python that finds none of the pipeline's packages, nor their metadata."""
    code = f"""
import importlib.metadata, sys
pipelines = ("prefect", "duckdb", "diffusers", "clip_interrogator", "transformers")
for name in pipelines:
    sys.modules[name] = None  # an import of it now fails
real = importlib.metadata.version
def version(name):
    if name.replace("-", "_") in pipelines:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
sys.path.insert(0, {str(ROOT)!r})
from lasr.doctor import __main__ as doctor
assert doctor.main(["--profile", "offline", "--program", "trainer"]) == 0
assert doctor.main(["--profile", "offline"]) == 1
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    for package in ("prefect", "duckdb", "diffusers"):
        assert f"✗ package: {package} is missing" in done.stdout
    assert (
        "✗ DuckDB" in done.stdout and "pip install --upgrade '.[pipeline,trainer]'" in done.stdout
    )


def test_versions_that_clash_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = installed.version
    monkeypatch.setattr(installed, "version", lambda n: "0.151.2" if n == "fastapi" else real(n))
    found = list(installed.packages(frozenset(["pipeline"])))
    assert any(f.level == "wrong" and f.found == "fastapi is 0.151.2, not <0.151" for f in found)
    # From a wheel there is no pyproject.toml; its metadata says the same.
    monkeypatch.setattr(installed, "__file__", str(tmp_path / "schemas" / "installed.py"))
    here = {r.name for r in installed._requirements(frozenset(["pipeline"]))}
    assert {"torch", "prefect", "fastapi"} <= here and "tensorboard" not in here


def test_a_gpu_that_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(installed, "_driver", lambda: "550.54.15")
    (finding,) = installed._gpu(torch)
    assert finding.level == "wrong" and "driver 550.54.15" in finding.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = installed._gpu(torch)
    assert finding.level == "warning" and "hidden by CUDA_VISIBLE_DEVICES" in finding.found
    monkeypatch.setattr(installed, "_driver", lambda: "")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (finding,) = installed._gpu(torch)
    assert finding.level == "warning" and finding.found.startswith("none")


def test_a_check_that_breaks_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Finding]:
        raise KeyError("a bug")
        yield

    monkeypatch.setattr(room, "variables", broken)
    status, findings = examine(capsys, "--profile", "offline")
    assert status == 1 and faults(findings)["broken"].found == "KeyError: 'a bug'"
