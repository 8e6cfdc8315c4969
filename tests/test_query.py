"""SQL on a manifest: the README's statements, as printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from pipeline.query import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose data/ holds the manifest."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "patches.parquet").symlink_to(manifest)
    (tmp_path / "data" / "images.parquet").symlink_to(manifest.parent / "images.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capfd: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, object]]:
    assert main([*argv, "--format", "json"]) == 0
    found: list[dict[str, object]] = json.loads(capfd.readouterr().out)
    return found


@pytest.mark.parametrize("table", ["'data/patches.parquet/*.parquet'", "patches"])
def test_the_questions_of_the_contract(
    project: Path, capfd: pytest.CaptureFixture[str], table: str
) -> None:
    sql = f"SELECT role, count(*) AS n, avg(distance) AS d FROM {table} GROUP BY role ORDER BY role"
    near, far = answer(capfd, sql)
    assert (near["role"], far["role"]) == ("hr", "lr") and near["d"] < far["d"]  # type: ignore[operator]
    words = answer(
        capfd,
        f"SELECT word, count(*) AS n FROM (SELECT unnest(words) AS word FROM {table}) GROUP BY 1",
    )
    assert sum(w["n"] for w in words) == 24 * (near["n"] + far["n"])  # type: ignore[operator,misc]
    (counts,) = answer(capfd, "SELECT sum(n_lr) AS lr, sum(n_hr) AS hr FROM images")
    assert (counts["lr"], counts["hr"]) == (far["n"], near["n"])


def test_metadata_questions_read_no_pixels(manifest: Path) -> None:
    plan = duckdb.sql(
        f"EXPLAIN SELECT role, count(*), avg(distance) FROM '{manifest}/*.parquet' GROUP BY role"
    ).fetchall()[0][1]
    assert "distance" in plan and "image" not in plan.replace("images", "")


def test_formats(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT role, rank FROM patches ORDER BY ALL LIMIT 2"
    assert main([sql, "--format", "csv"]) == 0
    assert capfd.readouterr().out.splitlines() == ["role,rank", "hr,0", "hr,0"]
    assert main([sql]) == 0
    assert "│ hr" in capfd.readouterr().out
    assert main([sql, "--format", "parquet", "--out", "data/answer.parquet"]) == 0
    assert duckdb.sql("FROM 'data/answer.parquet'").fetchall() == [("hr", 0), ("hr", 0)]


def test_answers_can_be_appended_to_a_file(project: Path) -> None:
    log = project / "log.csv"
    log.write_text("kept\n")
    with open(log, "a") as out:
        command = [sys.executable, "-m", "pipeline.query", "SELECT 1 AS one", "--format", "csv"]
        subprocess.run(command, stdout=out, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert log.read_text() == "kept\none\n1\n"


def test_mistakes_get_one_line(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for argv, message in [
        (["SELECT colour FROM patches"], 'Referenced column "colour" not found'),
        (["SELEC 1"], "syntax error"),
        (["SELECT 1", "--format", "parquet"], "say where with --out"),
        (["SELECT 1", "--manifest", "nowhere.parquet"], "nowhere.parquet: no manifest there"),
    ]:
        assert main(argv) == 1
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("error: ")
