"""The ready questions, each on a real build; none of them reads a pixel."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image

from pipeline.config import BuildConfig
from pipeline.inputs.photographs import find
from pipeline.query.__main__ import main
from pipeline.query.questions import QUESTIONS, page
from pipeline.query.views import connect
from pipeline.stages.images import load
from schemas.manifest import split_of
from tests.conftest import run_stages

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def asked(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with everything that the questions look for."""
    folder = tmp_path_factory.mktemp("asked")
    album = folder / "album"
    album.mkdir()
    for name in ("china.jpg", "coffee.png", "flower.jpg", "rocket.jpg"):
        shutil.copy(photographs / name, album)
    shutil.copy(album / "china.jpg", album / "twin.jpg")
    (album / "text.jpg").write_text("no picture")
    flower = Image.open(album / "flower.jpg")
    flower.resize((500, 334)).save(album / "resized.jpg", quality=95)
    original = (album / "resized.jpg").read_bytes()
    for number in range(1000):  # bytes behind the picture, until the photograph is for validation
        (album / "resized.jpg").write_bytes(original + str(number).encode())
        (found,) = find([str(album / "resized.jpg")])
        if split_of(load(found, 224).image_id) == "val":
            break
    Image.linear_gradient("L").resize((600, 300)).save(album / "gradient.png")
    run_stages(
        BuildConfig(
            images=[str(album)],
            out=folder / "patches.parquet",
            profile="test",
            k=4,
            # An estimator that is often wrong, unfiltered: each question finds something.
            depth="colour-attenuation",
            far_texture=0,
        )
    )
    return folder / "patches.parquet"


def ask(manifest: Path, name: str) -> list[dict[str, Any]]:
    answer = connect(manifest).sql(QUESTIONS[name].sql)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_is_answered(
    asked: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--ask", name, "--manifest", str(asked), "--format", "json"]
    assert main(argv) == 0
    assert json.loads(capfd.readouterr().out), "nothing in this album is what the question seeks"


def scanned(plan: dict[str, Any]) -> Iterator[str]:
    """What the scans of a plan read: columns and filters."""
    if "PARQUET" in plan["name"]:
        for key in ("Projections", "Filters"):
            found = plan["extra_info"].get(key, [])
            yield from [found] if isinstance(found, str) else found
    for child in plan["children"]:
        yield from scanned(child)


def read_columns(manifest: Path, sql: str) -> list[str]:
    with connect(manifest) as connection:
        plans = json.loads(connection.sql(f"EXPLAIN (FORMAT json) {sql}").fetchall()[0][1])
    return [column for plan in plans for column in scanned(plan)]


def is_pixels(column: str) -> bool:
    return bool(re.search(r"\bimage\b", column))


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_question_reads_pixels(asked: Path, name: str) -> None:
    columns = read_columns(asked, QUESTIONS[name].sql)
    assert columns and not any(map(is_pixels, columns)), columns


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT role, count(*), avg(distance) FROM patches GROUP BY role",
        "SELECT word, count(*) FROM (SELECT unnest(words) AS word FROM patches) GROUP BY 1",
        "SELECT word, count(*) FROM words GROUP BY word",
        "FROM words",
        "FROM pairs",
    ],
)
def test_metadata_questions_read_no_pixels(asked: Path, sql: str) -> None:
    columns = read_columns(asked, sql)
    assert columns and not any(map(is_pixels, columns)), columns


def test_it_would_be_seen_if_pixels_were_read(asked: Path) -> None:
    for sql in (
        "SELECT image FROM patches",
        "SELECT octet_length(image.bytes) FROM patches",
        "SELECT count(*) FROM patches WHERE octet_length(image.bytes) > 3000",
        "FROM patches",
    ):
        assert any(map(is_pixels, read_columns(asked, sql))), sql


def test_the_answers_are_right(asked: Path) -> None:
    nothing = {row["path"]: row["status"] for row in ask(asked, "gave-nothing")}
    assert nothing == {"text.jpg": "unreadable", "twin.jpg": "duplicate"}
    for name in ("same-photographs", "leaks"):
        (row,) = ask(asked, name)
        assert (row["path"], row["looks_like"]) == ("resized.jpg", "flower.jpg")
    assert {row["split"]: row["photographs"] for row in ask(asked, "splits")} == {
        "train": 5,
        "val": 1,
    }
    left = {row["patch_id"] for row in ask(asked, "without-duplicates")}
    names = connect(asked).sql("SELECT patch_id, image_path FROM patches").fetchall()
    assert {path for patch, path in names if patch in left} == {path for _, path in names} - {
        "resized.jpg"
    }
    commonest = ask(asked, "word-balance")[0]
    holds = f"list_contains(words, '{commonest['word']}')"
    sql = f"SELECT count(*), count(DISTINCT image_id) FROM '{asked}/*.parquet' WHERE {holds}"
    assert duckdb.sql(sql).fetchall() == [(commonest["patches"], commonest["photographs"])]
    odds = [row["log_odds"] for row in ask(asked, "telling-words")]
    assert sorted(map(abs, odds), reverse=True) == list(map(abs, odds)) and max(odds) > 0 > min(
        odds
    )


def test_the_page_is_made_of_the_questions() -> None:
    told = (ROOT / "docs" / "questions.md").read_text()
    assert told == page(), "run `python -m pipeline.query.questions > docs/questions.md`"


def test_they_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(QUESTIONS) and lines[1].split()[0] == "sharp-far"
