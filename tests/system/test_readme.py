"""Every command of the README, run one after the other as a reader would, in an empty folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lasr.__main__ import main

ROOT = Path(__file__).parents[2]
# What the test adds to a command: no weights can be fetched here, and two steps are enough.
ADDED = {
    "build": ["--profile", "test", "--k", "4"],
    "train": ["--profile", "test", "--steps", "2", "--batch-size", "2"],
}
ELSEWHERE = {  # lines that another test runs
    "lasr weights fetch default": "test_fetch.py, from a hub on this machine",
    "make demo": ".ci/run",
    "make test": ".ci/run",
    ". .venv/bin/activate": ".ci/run makes the environment",
}


def blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```\n(.*?)^```$", text, re.S | re.M)


def lines() -> list[str]:
    found = [line.split("#")[0].strip() for block in blocks() for line in block.splitlines()]
    return [line for line in found if re.match(r"make |lasr [a-z]|\. ", line)]


def test_the_readme_as_typed(
    photographs: Path, prefect_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    shutil.copytree(photographs, home / "photos")
    shutil.copy(prefect_database, home)
    Image.open(home / "photos" / "china.jpg").crop((200, 100, 248, 148)).save(home / "photo.jpg")
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(home))
    run: list[str] = []
    for line in lines():
        if line in ELSEWHERE:
            continue
        _, name, *argv = [
            str(Path(word).expanduser()) if word.startswith("~") else word
            for word in shlex.split(line)
        ]
        argv = [name, *argv, *ADDED.get(name, [])]
        run.append(name)
        if name == "build":  # it starts Prefect's server: in a process of its own
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(home)}
            command = [sys.executable, "-m", "lasr", *argv]
            subprocess.run(command, env=environment, check=True)
        else:
            assert main(argv) == 0, line
    first = ["build", "report", "query", "train", "upscale"]
    assert run == [*first, "query", "train", "export"]
    upscaled = np.asarray(Image.open("upscaled/photo.png"))
    assert upscaled.shape == (192, 192, 3) and 20 < upscaled.mean() < 235
    for file in ("data/report.html", "data/subset.parquet", "mine-x4.onnx"):
        assert Path(file).exists(), file


def test_it_is_a_page_that_leads_with_a_result() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    assert "docs/result.jpg" in text[: text.index("\n## ")]
    assert (ROOT / "docs/result.jpg").stat().st_size <= 250_000


def test_the_tree_names_each_package_and_folders_that_exist() -> None:
    (tree,) = [block for block in blocks() if block.startswith("lasr/ ")]
    top, named = "", set()
    for line in tree.splitlines():
        folders = re.findall(r"(?<!\S)([a-z]+)/", line)
        if not line.startswith(" "):
            top = folders.pop(0)
            named.add(top)
        named |= {f"{top}/{f}" if (ROOT / top / f).is_dir() else f for f in folders}
    assert sorted(name for name in named if not (ROOT / name).is_dir()) == []
    packages = {
        f"{package.parent.relative_to(ROOT)}"
        for top in ("lasr", "schemas", "pipeline", "trainer")
        for package in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(name for name in packages - named if name.count("/") < 2) == []
