"""A manifest in storage: the same answers, and no byte that was not needed."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.s3_server import S3, serving
from pipeline.query.__main__ import main
from pipeline.query.mirror import Mirror, scanned
from pipeline.query.questions import QUESTIONS
from pipeline.query.source import opened
from pipeline.query.views import connect, with_views
from pipeline.report.__main__ import main as report
from tests.support.stored import ADDRESS, reached


@pytest.fixture(scope="module")
def server(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server of the manifest and of what is beside it."""
    folder = tmp_path_factory.mktemp("buckets")
    data = folder / "bucket" / "data"
    shutil.copytree(manifest, data / "patches.parquet")
    for name in ("images.parquet", "duplicates.parquet"):
        shutil.copy(manifest.parent / name, data)
    shutil.copytree(manifest.parent / "patches.work", data / "patches.work")
    with serving(folder) as s3:
        yield s3


@pytest.fixture
def stored(server: S3) -> Iterator[str]:
    """The address of the manifest."""
    with reached(server):
        server.counts()
        yield ADDRESS


def test_answers_are_those_of_a_local_manifest(stored: str, server: S3, manifest: Path) -> None:
    """Every question, each of a mirror of its own: footers and the columns needed come."""
    pixels = sum(
        pq.read_metadata(file).row_group(group).column(i).total_compressed_size
        for file in manifest.glob("*.parquet")
        for group in range(pq.read_metadata(file).num_row_groups)
        for i in range(pq.read_metadata(file).num_columns)
        if pq.read_metadata(file).row_group(group).column(i).path_in_schema == "image.bytes"
    )
    size = sum(file.stat().st_size for file in manifest.glob("*.parquet"))
    beside = sum(
        file.stat().st_size for file in manifest.parent.glob("*.parquet") if file.is_file()
    )
    fetched = {}
    with connect(manifest) as local:
        for name, question in QUESTIONS.items():
            with opened(Path(stored)) as (found, mirror):
                assert mirror
                with with_views(found) as connection:
                    server.counts()
                    mirror.fetch(connection, question.sql)
                    answer = connection.sql(question.sql).fetchall()
                assert sorted(map(str, answer)) == sorted(
                    map(str, local.sql(question.sql).fetchall())
                ), name
                fetched[name] = server.counts()[1]
    assert max(fetched.values()) < beside + size - pixels, "and the least is 0, by statistics alone"
    assert fetched["plain"] > 0


def test_the_command_and_the_report(
    stored: str, manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for form in ("csv", "table"):
        sql = "SELECT * EXCLUDE image FROM patches ORDER BY patch_id LIMIT 3"
        answers = []
        for where in (stored, str(manifest)):
            assert main([sql, "--manifest", where, "--format", form]) == 0
            answers.append(capfd.readouterr().out)
        assert answers[0] == answers[1] != ""
    pages = []
    for where in (stored, str(manifest)):
        out = tmp_path / "x.html"
        assert report(["--manifest", where, "--out", str(out)]) == 0
        lines = out.read_text().splitlines()
        pages.append([line for line in lines if where not in line and "la-sr" not in line])
        assert len(lines) - len(pages[-1]) <= 4
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["FROM patches", "--format", "csv"], "reads pixels, which are not fetched"),
        (["SELECT patch_id FROM patches", "--save", "x.parquet"], "--save: the pixels of s3://"),
        (["SELECT 1", "--manifest", "s3://bucket/data/none.parquet"], "no manifest there"),
        (["SELECT 1", "--manifest", "s3://bucket/"], "holds no *.parquet part; check the address"),
        (["FROM 's3://bucket/data/images.parquet'"], "is not a file of this manifest"),
    ],
)
def test_what_storage_does_not_give(
    argv: list[str], said: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    where = [] if "--manifest" in argv else ["--manifest", stored]
    assert main([*argv, *where]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and said.lower() in error.lower(), error


def test_a_hole_is_never_an_answer(stored: str, tmp_path: Path) -> None:
    """A column that was not fetched is an error, should a plan not name it."""
    with opened(Path(stored)) as (found, mirror), with_views(found) as connection:
        assert mirror
        mirror.fetch(connection, "SELECT role FROM patches")
        assert connection.sql("SELECT DISTINCT role FROM patches ORDER BY 1").fetchall() == [
            ("hr",), ("lr",),
        ]  # fmt: skip
        for column in ("x", "patch_id", "words"):  # luma stands behind the pixels, by the footer
            with pytest.raises(duckdb.Error):
                connection.sql(f"SELECT {column} FROM patches ORDER BY ALL").fetchall()


def test_nothing_is_fetched_twice_and_a_stop_ends_it(stored: str, server: S3) -> None:
    with opened(Path(stored)) as (found, mirror), with_views(found) as connection:
        assert isinstance(mirror, Mirror)
        stopped = threading.Event()
        stopped.set()
        with pytest.raises(duckdb.InterruptException):
            mirror.fetch(connection, "SELECT luma FROM patches", stopped)
        mirror.fetch(connection, "SELECT role, distance FROM patches")
        server.counts()
        mirror.fetch(connection, "SELECT role FROM patches WHERE distance > random()")
        assert server.counts()[1] == 0


def test_a_plan_names_columns_and_filters(manifest: Path, tmp_path: Path) -> None:
    rows = {"my score": [1], "a.b": [2], "other": [0], "image": [{"path": "p", "bytes": b""}]}
    pq.write_table(pa.table(rows), tmp_path / "odd.parquet")
    with connect(manifest) as connection:
        connection.sql(f"CREATE VIEW odd AS FROM '{tmp_path}/odd.parquet'")
        for view, leaves, sql, read in (
            ("patches", ["x", "y", "luma", "image.path", "image.bytes"],
             "max(X) FROM patches WHERE luma > 0.1 AND image.path <> 'P'",
             {"x", "luma", "image.path"}),
            ("patches", ["image.bytes", "image.path"], "image.path FROM patches", {"image.path"}),
            ("patches", ["image.bytes", "x"], "image FROM patches", {"image.bytes"}),
            ("patches", ["words", "word_scores"], "unnest(words) FROM patches", {"words"}),
            ("odd", ["my score", "a.b", "other"], """"a.b" FROM odd WHERE "my score" > random()""",
             {"my score", "a.b"}),
            ("odd", ["my score", "other"], """count(*) FROM odd WHERE "my score" > random()""",
             {"my score"}),
            ("another table", ["x", "kept"], "max(luma) FROM patches WHERE x > random()", set()),
        ):  # fmt: skip
            scans = scanned(connection, f"SELECT {sql}")
            assert scans and {leaf for scan in scans for leaf in scan.of(leaves)} == read, (
                view,
                sql,
            )
        assert scanned(connection, "EXPLAIN SELECT 1") is None


def test_only_the_table_that_is_asked_is_fetched(stored: str, server: S3) -> None:
    with opened(Path(stored)) as (found, mirror), with_views(found) as connection:
        assert isinstance(mirror, Mirror)
        server.counts()
        mirror.fetch(connection, "SELECT count(*) FROM patches")
        assert server.counts()[1] == 0
        of_images = "SELECT image_id, status FROM images"
        mirror.fetch(connection, of_images)
        assert {status for _, status in connection.sql(of_images).fetchall()} == {"ok"}
        with pytest.raises(duckdb.Error):  # a hole
            connection.sql("SELECT max(image_id) FROM patches").fetchall()
