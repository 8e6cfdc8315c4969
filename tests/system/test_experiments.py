"""No table, figure or data set of the paper is missing in the documentation."""

import re
from pathlib import Path

from PIL import Image

from tests.system.test_docs import commands
from trainer.evaluate import testset

ROOT = Path(__file__).parents[2]


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
        using = [c for c in commands("docs/experiments.md") if re.search(rf"sets/{name}\b", c)]
        assert using, name


def test_drealsrs_names_match_as_the_page_says(tmp_path: Path) -> None:
    for folder, suffix, side in (("LR", "x1", 4), ("HR", "x4", 16)):
        (tmp_path / folder).mkdir()
        for name in ("sony_1", "sony_11", "canon_1"):
            Image.new("RGB", (side, side)).save(tmp_path / folder / f"{name}_{suffix}.png")
    pictures = testset.from_images([tmp_path / "LR"], [tmp_path / "HR"], 4)
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.reference is not None
        assert picture.reference.stem.removesuffix("_x4") == picture.name.removesuffix("_x1")
