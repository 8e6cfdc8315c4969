"""Which bytes of a manifest are read: those of the columns, and of pixels only what is shown."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.query.pixels import rows_of_patches
from pipeline.query.questions import QUESTIONS
from pipeline.query.views import connect, with_views
from pipeline.report.__main__ import main as report
from schemas.manifest import open_manifest
from schemas.parquet import table_writer

BYTES = 80_000  # of the pixels of a patch
ROWS = 8  # of a row group
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts bytes in /proc")


def read_by(work: Callable[[], object]) -> int:
    """The bytes that this process reads from files meanwhile."""

    def count() -> int:
        found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
        assert found
        return int(found[1])

    before = count()
    work()
    return count() - before


@pytest.fixture(scope="module")
def heavy(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest whose pixels are most of its bytes, as those of a build are, and no pictures."""
    path = tmp_path_factory.mktemp("heavy") / "patches.parquet"
    path.mkdir()
    rows = ds.dataset(manifest).to_table()
    field = rows.schema.field("image")
    pixels = [{"bytes": os.urandom(BYTES), "path": "x.png"} for _ in range(len(rows))]
    at = rows.schema.get_field_index("image")
    rows = rows.set_column(at, field, pa.array(pixels, field.type))
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        with table_writer(path / f"part-{number}.parquet", rows.schema) as write:
            for start in range(0, len(part), ROWS):
                write(part[start : start + ROWS])
    for name in ("images.parquet", "duplicates.parquet"):
        shutil.copy(manifest.parent / name, path.parent)
    return path


def test_the_pixels_are_most_of_it(heavy: Path) -> None:
    size = sum(file.stat().st_size for file in heavy.iterdir())
    pixels = sum(pq.read_metadata(file).num_rows for file in heavy.iterdir()) * BYTES
    assert pixels > 4_000_000 and size - pixels < 500_000


@pytest.mark.parametrize(
    "sql",
    [
        *(question.sql for question in QUESTIONS.values()),
        "SELECT word, count(*) FROM words GROUP BY word",
        "FROM words",
        "FROM pairs",
        "SELECT max(caption), max(image.path) FROM patches",
    ],
    ids=[*QUESTIONS, "words", "all words", "pairs", "names"],
)
def test_no_bytes_of_pixels_are_read(heavy: Path, sql: str) -> None:
    with connect(heavy) as connection:
        read = read_by(lambda: connection.sql(sql).fetchall())
    assert 0 < read < 1_000_000, "of 4.5 MB, of which 4.1 are pixels"


def test_the_pixels_of_a_few_patches_are_those_of_their_row_groups(heavy: Path) -> None:
    opened = open_manifest(heavy, columns=())
    whole = ds.dataset(heavy).to_table(columns=["patch_id", "rank", "image"])
    ids = whole["patch_id"].to_pylist()
    wanted = [ids[3], "no patch", ids[-1]]
    found: list[pa.Table] = []
    with with_views(opened) as connection:
        columns = ("image", "patch_id", "rank", "missing")
        read = read_by(lambda: found.append(rows_of_patches(connection, opened, wanted, columns)))
        expected = [row for row in whole.to_pylist() if row["patch_id"] in wanted]
        assert found[0].select(["patch_id", "rank", "image"]).to_pylist() == expected
        assert 2 * BYTES < read < 2 * ROWS * BYTES + 500_000
        assert len(rows_of_patches(connection, opened, [], columns)) == 0


def test_the_report_reads_the_pixels_that_it_shows(
    heavy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--manifest", str(heavy), "--out", str(tmp_path / "x.html"), "--photographs", "0"]
    assert report([*argv, "--pairs", "1"]) == 0  # what writes pictures is loaded
    none = read_by(lambda: report([*argv, "--pairs", "0"]))
    one = read_by(lambda: report([*argv, "--pairs", "1"]))
    assert 0 < one - none < 2 * ROWS * BYTES + 500_000
