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

from tests.support.commands import program_of

ROOT = Path(__file__).parents[2]
# What the test adds to a line: no weights can be fetched here, and two steps are enough.
ADDED = {
    "pipeline.run": ["--profile", "offline", "--k", "4"],
    "trainer.run": ["--profile", "offline", "--steps", "2", "--batch-size", "2"],
}
ELSEWHERE = {  # lines that another test runs
    "python -m lasr.weights fetch default": "test_fetch.py, against a hub on this machine",
    "prefect server start": "test_flow.py",
    "python -m pipeline.flows": "test_flow.py",
    "prefect deployment run": "test_flow.py",
    "make demo": ".ci/run",
    "make test": ".ci/run",
}


def blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```\n(.*?)^```$", text, re.S | re.M)


def lines() -> list[str]:
    found = [line for block in blocks() for line in block.splitlines()]
    return [line for line in found if re.match(r"make |\.venv/bin/", line)]


def test_the_readme_as_typed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    shutil.copytree(photographs, home / "photos")
    picture = Image.open(home / "photos" / "china.jpg").crop((200, 100, 248, 148))
    for file in (home / "photo.jpg", home / "old-photos" / "a.png", project / "sets/Set5/a.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(home))
    run: list[str] = []
    for line in lines():
        command = line.split("#")[0].strip().removeprefix(".venv/bin/")
        if any(command.startswith(known) for known in ELSEWHERE):
            continue
        module, *argv = [
            str(Path(word).expanduser()) if word.startswith("~") else word
            for word in shlex.split(command)[2:]
        ]
        argv += ADDED.get(module, [])
        run.append(module)
        if module == "pipeline.run":  # it starts Prefect's server: in a process of its own
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(home)}
            command_line = [sys.executable, "-m", module, *argv]
            subprocess.run(command_line, env=environment, check=True, timeout=200)
        else:
            assert program_of(module).main(argv) == 0, line
    assert len(run) >= 12, run
    enlarged = np.asarray(Image.open("enlarged/photo.png"))
    assert enlarged.shape == (192, 192, 3) and 20 < enlarged.mean() < 235
    for file in ("data/report.html", "data/subset.parquet", "enlarged/a.png", "mine-x4.onnx"):
        assert Path(file).exists(), file


def test_what_the_page_links_to_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tree_names_files_that_are_there_and_forgets_none() -> None:
    (tree,) = [block for block in blocks() if block.startswith("schemas/ ")]
    folder, named = "", set()
    for line in tree.splitlines():
        if match := re.match(r"(\w+)/", line):
            folder = match[1]
        named |= {f"{folder}/{name}" for name in re.findall(r"\b(\w+\.(?:py|txt))", line)}
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
    own = {"schemas", "pipeline", "trainer"}
    files = {f"{d}/{f.name}" for d in own for f in (ROOT / d).glob("*.py")}
    assert sorted(file for file in files - named if "__init__" not in file) == []
