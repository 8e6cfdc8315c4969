"""Every command in the documentation parses, and no table or figure is missing."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lasr import cli
from tests.support.commands import program_of
from trainer.evaluate import testset

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/experiments.md", "docs/datasets.md", "docs/weights.md")


def commands(page: str) -> list[str]:
    """The lines of a page's fenced blocks that start one of our programs."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.search(r"python -m|torchrun", line)]


@pytest.mark.parametrize(("page", "command"), [(p, c) for p in PAGES for c in commands(p)], ids=str)
def test_a_command_on_the_page_is_one_that_the_program_takes(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = shlex.split(command, comments=True)
    module, argv = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    program = program_of(module)
    if module == "pipeline.flows":  # it serves the deployment, and takes no flag
        assert argv == []
        return
    monkeypatch.setenv("LASR_WEIGHTS", "data/weights")  # --weights-dir sets another
    started = []
    monkeypatch.setattr(cli, "run_command", lambda body, debug: (started.append(body), 0)[1])
    monkeypatch.chdir(tmp_path)
    assert program.main(argv) == 0  # a flag that is unknown or out of range exits here
    assert len(started) == 1 and not list(tmp_path.iterdir())


def test_every_table_and_figure_is_on_the_page() -> None:
    text = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    named: dict[str, set[int]] = {"table": set(), "figure": set()}
    for kind, numbers in re.findall(r"(?i)\b(table|figure)s? ((?:\d+|, | and | to )+)", text):
        numbers = re.sub(
            r"(\d+) to (\d+)",
            lambda m: " ".join(map(str, range(int(m[1]), int(m[2]) + 1))),
            numbers,
        )
        named[kind.lower()] |= set(map(int, re.findall(r"\d+", numbers)))
    assert named["table"] == set(range(1, 10)) and named["figure"] == set(range(1, 13))
    assert "E.1" in text and "E.2" in text
    assert len(commands("docs/experiments.md")) > 30


SETS = ("Set5", "Set14", "BSD100", "General100", "Urban100", "DIV2K", "OST", "DRealSR")
SETS += ("CameraFusion", "CUFED5")


def test_every_data_set_of_the_paper_has_an_address_a_folder_and_a_command() -> None:
    text = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for name in (*SETS, "Flickr2K", "DF2K", "LSDIR"):
        (row, *_) = (row for row in rows if row.startswith(f"| {name}"))
        assert re.search(r"https?://|the same|above|together", row), row
    for name in SETS:
        assert f"`{name}/" in text
        assert any(f"sets/{name}" in command for command in commands("docs/datasets.md")), name


def test_drealsrs_names_meet_as_the_page_says(tmp_path: Path) -> None:
    for folder, suffix, side in (("LR", "x1", 4), ("HR", "x4", 16)):
        (tmp_path / folder).mkdir()
        for name in ("sony_1", "sony_11", "canon_1"):
            Image.new("RGB", (side, side)).save(tmp_path / folder / f"{name}_{suffix}.png")
    pictures = testset.from_images([tmp_path / "LR"], [tmp_path / "HR"], 4)
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.reference is not None
        assert picture.reference.stem.removesuffix("_x4") == picture.name.removesuffix("_x1")
