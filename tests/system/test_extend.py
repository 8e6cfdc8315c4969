"""docs/extend.md, followed word by word on a copy of the source, and what it adds, used."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import BuildConfig
from tests.conftest import run_stages
from tests.support.servers import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("lasr", "schemas", "pipeline", "trainer")
STEP = re.compile(
    r"^(?:New file `(?P<new>\S+)`"
    r"|In `(?P<file>\S+)`, (?P<where>after|before|instead of) the line `(?P<line>[^\n]+)`):\n\n"
    r"```python\n(?P<block>.*?)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Copy:
    """The source with everything that the page adds."""

    folder: Path
    touched: dict[str, set[str]]  # heading of the page -> files it changes
    environment: dict[str, str]

    def run(self, *commands: tuple[str, ...]) -> None:
        """Call the `main` of modules of the copy, in one process."""
        (self.folder / "commands.py").write_text(COMMANDS)
        done = subprocess.run(
            [sys.executable, "commands.py", json.dumps(commands)],
            cwd=self.folder, env=self.environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


COMMANDS = """
import importlib, json, sys

for name, *argv in json.loads(sys.argv[1]):
    if status := importlib.import_module(name).main(argv):
        sys.exit(f"{name} ended with {status}")
"""


def apply(step: re.Match[str], folder: Path) -> str:
    """Do what a step of the page says; returns the file that it changes."""
    if step["new"]:
        assert not (folder / step["new"]).exists()
        (folder / step["new"]).write_text(step["block"])
        return step["new"]
    file = folder / step["file"]
    lines = file.read_text().splitlines(keepends=True)
    (index,) = [i for i, line in enumerate(lines) if line.rstrip("\n") == step["line"]]
    start, end = {
        "after": (index + 1, index + 1), "before": (index, index), "instead of": (index, index + 1)
    }[step["where"]]  # fmt: skip
    lines[start:end] = [step["block"]]
    file.write_text("".join(lines))
    return str(step["file"])


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "prefect.toml", folder)
    page = (ROOT / "docs" / "extend.md").read_text()
    touched: dict[str, set[str]] = {}
    for section in page.split("\n## ")[1:]:
        steps = list(STEP.finditer(section))
        assert len(steps) == section.count("```python"), "a block without its file"
        touched[section.splitlines()[0]] = {apply(step, folder) for step in steps}
    variables = environment(folder) | {"PYTHONPATH": str(folder)}
    return Copy(folder, touched, variables)


def test_each_addition_touches_one_file_or_two(extended: Copy) -> None:
    assert {heading: len(files) for heading, files in extended.touched.items()} == {
        "A depth estimator": 2, "A selection strategy": 1, "A column": 2, "A metric": 1
    }  # fmt: skip


@pytest.fixture(scope="module")
def album(photographs: Path, extended: Copy) -> Path:
    folder = extended.folder / "photographs"
    folder.mkdir()
    for name in ("china.jpg", "coffee.png"):
        shutil.copy2(photographs / name, folder)
    return folder


def rows(out: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = ds.dataset(out).to_table().to_pylist()
    return found


@pytest.fixture(scope="module")
def used(photographs: Path, extended: Copy, album: Path) -> Path:
    """The copy's folder after every addition was used, in one process that imports once."""
    old = BuildConfig(images=[str(album)], out=extended.folder / "old.parquet", profile="test", k=2)
    assert run_stages(old)
    shutil.copytree(old.out, extended.folder / "before.parquet")
    (extended.folder / "complete.py").write_text(COMPLETE)
    picture = Image.open(photographs / "coffee.png").convert("RGB").crop((0, 0, 256, 192))
    dark = picture.point(lambda value: value * 4 // 5)
    bright = dark.point(lambda value: value + 20)  # at most 224
    for folder, content in (
        ("lr", dark.resize((64, 48))), ("reference", dark), ("outputs", bright)
    ):  # fmt: skip
        (extended.folder / folder).mkdir()
        content.save(extended.folder / folder / "coffee.png")
    extended.run(
        ("complete", "--images", "photographs", "--profile", "test", "--k", "3",
         "--depth", "row-position", "--strategy", "texture", "--out", "new.parquet"),
        ("pipeline.query.__main__", "--manifest", "new.parquet",
         "SELECT count(saturation) AS n FROM patches", "--format", "csv",
         "--out", "answer.csv"),
        ("complete", "--images", str(album), "--profile", "test", "--k", "2",
         "--out", str(old.out)),
        ("trainer.evaluate.__main__", "--images", "lr", "--reference", "reference", "--outputs",
         "mine=outputs", "--metrics", "colour-shift", "--out", "scores", "--device", "cpu"),
    )  # fmt: skip
    return extended.folder


COMPLETE = """
import pipeline.run
from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard

def main(argv):
    # `lasr build` without Prefect, which takes as long as all else.
    build = plan_build(prepare(pipeline.run.main.flags.parse(argv)[0]))
    finish(build, [build_shard(build.job, shard) for shard in build.plan.to_do])
"""


def test_a_build_uses_the_new_estimator_strategy_and_column(used: Path) -> None:
    found = rows(used / "new.parquet")
    assert len(found) == 2 * 2 * 3
    for row in found:
        assert row["depth_model"] == "row-position@built-in" and row["strategy"] == "texture"
        assert 0 < float(str(row["saturation"])) < 1
        # The box mean of a ramp is the ramp: 1 at the top edge, 0 at the bottom.
        centre = int(str(row["y"])) + int(str(row["size"])) // 2
        expected = 1 - centre / (int(str(row["image_height"])) - 1)
        assert float(str(row["distance"])) == pytest.approx(expected, abs=1e-3)
    for path in ("china.jpg", "coffee.png"):
        texture = [r["texture"] for r in found if r["image_path"] == path and r["role"] == "lr"]
        assert texture == sorted(texture, reverse=True)  # type: ignore[type-var]
    assert (used / "answer.csv").read_text().split() == ["n", "12"]


def test_a_new_column_is_filled_in_where_a_manifest_lacks_it(used: Path) -> None:
    """The raised VERSION: without it, the next build would keep the finished parts as they are."""
    before, after = (rows(used / f"{name}.parquet") for name in ("before", "old"))
    assert not any("saturation" in row for row in before)
    assert all(row.pop("saturation") is not None for row in after)

    def by_id(row: dict[str, object]) -> str:
        return str(row["patch_id"])

    assert sorted(after, key=by_id) == sorted(before, key=by_id)


def test_an_evaluation_uses_the_new_metric(used: Path) -> None:
    (score,) = pq.read_table(used / "scores" / "scores.parquet").to_pylist()
    assert score["method"] == "mine" and score["metric"] == "colour-shift"
    assert score["score"] == pytest.approx(20 / 255, abs=1e-4)
    assert "Colour shift" in (used / "scores" / "means.md").read_text()
