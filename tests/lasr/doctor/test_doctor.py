"""The doctor: each thing broken on purpose, and the line that says so."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lasr.doctor import __main__ as doctor
from lasr.doctor import checks
from lasr.doctor.checks import Result
from lasr.errors import UserError
from lasr.weights.registry import PROFILES, TABLE
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


def examine(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[Result]]:
    status = doctor.main([*argv, "--json"])
    return status, [Result(**result) for result in json.loads(capsys.readouterr().out)]


def faults(results: list[Result]) -> dict[str, Result]:
    return {result.about: result for result in results if result.level == "wrong"}


def test_a_machine_where_the_offline_profile_runs_is_well(
    empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--profile", "test"]) == 0
    text = capsys.readouterr().out
    for about in ("Python", "packages", "PyTorch", "OpenCV", "DuckDB", "Prefect"):
        assert f"✓ {about}: " in text, text
    for about in ("disk", "data folder", "weights"):
        assert f"✓ {about}: " in text
    assert "✗" not in text and "torchvision 0." in text and "tiny-clip@built-in" in text
    assert not list(empty.iterdir())  # it changes nothing


def test_missing_weights_are_named_with_their_command(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", str(empty))
    (empty / "vgg19").mkdir()
    save_vgg19(empty / "vgg19" / "vgg19-dcbb9e9d.pth", width=8)
    any_content(monkeypatch, "vgg19")
    status, results = examine(capsys, "--profile", "paper")
    missing = faults(results)["weights"]
    names = ("depthfm-v1", "clip-vit-l-14", "rrdb-psnr-x4", "sd15-vae")
    command = f"lasr weights fetch {' '.join(names)} --weights-dir {empty}"
    assert status == 1 and missing.fix.startswith(f"run `{command}`")
    for name in names:
        assert f"'{name}' ({TABLE[name].megabytes} MB" in missing.found
    assert "vgg19" not in missing.found
    _, results = examine(capsys, "--profile", "paper", "--program", "trainer")
    assert "depthfm" not in faults(results)["weights"].found


def test_damaged_weights(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PROFILES["test"], "vgg", "vgg19")
    (file := empty / "data/weights/vgg19/vgg19-dcbb9e9d.pth").parent.mkdir(parents=True)
    file.write_bytes(b"not the published file")
    status, results = examine(capsys, "--profile", "test")
    fault = faults(results)["weights"]
    assert status == 1 and f"{file.relative_to(empty)}: is not the published file" in fault.found
    assert fault.fix == "remove it and run `lasr weights fetch vgg19`"


def test_a_full_disk_says_what_would_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    status, results = examine(capsys, "--profile", "test", "--photographs", "10000000000")
    fault = faults(results)["disk"]
    assert status == 1 and "15000000.1 GB needed" in fault.found and "free some" in fault.fix


def test_what_training_and_fetching_write_counts(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10e9})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    data = empty / "data"
    with pytest.raises(UserError, match=r"18\.6 GB needed .* training 16\.2, .* fetch 2\.4"):
        checks.disk(data, "default", ("clip", "vgg", "sr"), 1000)
    pipeline = checks.disk(data, "default", ("depth", "clip"), 1000)
    assert "1000 photographs 1.5, training 0.0, weights to fetch 1.8" in pipeline
    monkeypatch.setenv("LASR_WEIGHTS", "/proc/weights")  # another disk: `fetch` checks that one
    assert "weights to fetch 0.0" in checks.disk(data, "default", ("depth", "clip"), 1000)


def test_a_folder_that_cannot_be_written(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even root cannot write below /proc."""
    status, results = examine(capsys, "--profile", "test", "--data", "/proc/data")
    fault = faults(results)["data folder"]
    assert status == 1 and "/proc/data cannot be written" in fault.found and fault.fix


@contextmanager
def prefect(health: str = "true", status: int = 200, auth: str = "") -> Iterator[str]:
    """Answers like Prefect's server in one respect; tests/system/flow has the real one."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/health"
            token = self.headers["Authorization"] or ""
            expected = f"Basic {base64.b64encode(auth.encode()).decode()}" if auth else ""
            self.send_response(status if token == expected else 401)
            self.end_headers()
            self.wfile.write(health.encode())

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
        ({"health": "false"}, "wrong", "is not healthy"),
        ({"auth": "me:secret"}, "wrong", "401"),
        ({"status": 404}, "wrong", "404"),
    ],
)
def test_prefects_server(
    answer: dict[str, object], level: str, found: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with prefect(**answer) as address:  # type: ignore[arg-type]
        monkeypatch.setenv("PREFECT_API_URL", address)
        status, results = examine(capsys, "--profile", "test")
        (result,) = (r for r in results if r.about == "Prefect")
        assert (result.level, status) == (level, int(level == "wrong"))
        assert found in result.found and address in result.found
        assert bool(result.fix) == (level != "ok")
        if "auth" in answer:
            assert "PREFECT_API_AUTH_STRING" in result.fix
            monkeypatch.setenv("PREFECT_API_AUTH_STRING", str(answer["auth"]))
            assert examine(capsys, "--profile", "test")[0] == 0


@pytest.mark.parametrize("where", ["environment", "profile", "no URL"])
def test_a_server_that_is_not_there(
    where: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "127.0.0.1:4200" if where == "no URL" else f"http://127.0.0.1:{free_port()}/api"
    if where != "profile":
        monkeypatch.setenv("PREFECT_API_URL", address)
    else:
        (empty / "prefect").mkdir()
        profiles = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{address}"\n'
        (empty / "prefect" / "profiles.toml").write_text(profiles)
    status, results = examine(capsys, "--profile", "test")
    fault = faults(results)["Prefect"]
    assert status == 1 and address in fault.found and "does not answer" in fault.found
    assert "prefect server start" in fault.fix and "`PREFECT_API_URL= lasr build" in fault.fix
    assert examine(capsys, "--profile", "test", "--program", "trainer")[0] == 0


@pytest.mark.parametrize("broken", [("torchvision", "cv2", "duckdb"), ("torch", "pyarrow")])
def test_libraries_that_do_not_load_are_a_line_each_and_stop_nothing_else(
    broken: tuple[str, ...], tmp_path: Path
) -> None:
    message = "operator torchvision::nms does not exist"
    (tmp_path / "first").mkdir()
    for library in broken:
        (tmp_path / "first" / f"{library}.py").write_text(f"raise RuntimeError({message!r})\n")
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path / 'first'}:{ROOT}"}
    command = [sys.executable, "-m", "lasr.doctor", "--profile", "test"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    for library in broken:
        names = {
            "torch": "PyTorch",
            "torchvision": "PyTorch",
            "cv2": "OpenCV",
            "pyarrow": "DuckDB",
            "duckdb": "DuckDB",
        }
        name = names[library]
        number = next(i for i, line in enumerate(lines) if line.startswith(f"✗ {name}: "))
        assert message in lines[number] and name in done.stderr
        assert lines[number + 1].startswith("    → ") and "pip install" in lines[number + 1]
    assert done.returncode == 1 and "✓ weights folder" in done.stdout
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
assert doctor.main(["--profile", "test", "--program", "trainer"]) == 0
assert doctor.main(["--profile", "test"]) == 1
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for package in ("prefect", "duckdb", "diffusers"):
        assert f"✗ package: {package} is missing" in done.stdout
    assert (
        "✗ DuckDB" in done.stdout and "pip install --upgrade '.[pipeline,trainer]'" in done.stdout
    )


def test_versions_that_clash_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.version
    monkeypatch.setattr(checks, "version", lambda n: "0.151.2" if n == "fastapi" else real(n))
    found = list(checks.packages(["pipeline"]))
    assert any(r.level == "wrong" and r.found == "fastapi is 0.151.2, not <0.151" for r in found)
    # A wheel has no pyproject.toml; its metadata says the same.
    monkeypatch.setattr(checks, "PYPROJECT", tmp_path / "pyproject.toml")
    names = {r.name for r in checks._requirements(["pipeline"])}
    assert {"torch", "prefect", "fastapi"} <= names and "tensorboard" not in names
    (fault,) = (r for r in checks.packages(["pipeline"]) if r.level == "wrong")
    assert fault.fix == "run `pip install --upgrade 'la-sr[pipeline]'`"


@pytest.mark.parametrize("second", ["", "opencv-python", "opencv-contrib-python"])
def test_two_packages_of_opencv_are_a_warning(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.version

    def version(name: str) -> str:
        absent = name in checks.OPENCV and name not in ("opencv-python-headless", second)
        return "" if absent else real("opencv-python-headless" if name == second else name)

    monkeypatch.setattr(checks, "version", version)
    clash = [r for r in checks.packages(["trainer"]) if r.level == "warning"]
    assert len(clash) == bool(second)
    if second:
        assert second in clash[0].found and "overwrite each other's files" in clash[0].found
        assert "--force-reinstall opencv-python-headless" in clash[0].fix


def test_a_gpu_that_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(checks, "_has_driver", lambda: True)
    with pytest.raises(RuntimeError, match="cannot use the NVIDIA driver"):
        list(checks.gpu())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (result,) = checks.gpu()
    assert result.level == "warning" and result.found == "hidden by CUDA_VISIBLE_DEVICES"
    monkeypatch.setattr(checks, "_has_driver", lambda: False)
    (result,) = checks.gpu()
    assert result.level == "warning" and result.found.startswith("none")


def test_a_check_that_breaks_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> str:
        raise KeyError("a bug")

    monkeypatch.setattr(doctor, "disk", broken)
    status, results = examine(capsys, "--profile", "test")
    assert status == 1 and faults(results)["disk"].found == "KeyError: 'a bug'"
    assert "bug" in faults(results)["disk"].fix and results[-1].about != "disk"
