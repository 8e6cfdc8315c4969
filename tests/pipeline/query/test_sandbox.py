"""SQL can read the manifest and what stands beside it; ways out of that are tried here."""

import hashlib
import shutil
from pathlib import Path

import pytest

from pipeline.query.__main__ import main


@pytest.fixture
def project(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of which a manifest may be read, and a secret beside it may not."""
    folder = tmp_path / "project"
    shutil.copytree(manifest, folder / "data" / "patches.parquet")
    for name in ("images.parquet", "duplicates.parquet"):
        shutil.copy(manifest.parent / name, folder / "data")
    (folder / "secret.csv").write_text("word\nxyzzy\n")
    shutil.copy(manifest.parent / "images.parquet", folder / "data" / "secret.parquet")
    monkeypatch.setenv("SECRET", "xyzzy")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    return folder


def state(project: Path) -> dict[str, str]:
    """What there is in the project and around it."""
    files = [path for path in project.parent.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


QUOTE = "'"
PART = "data/patches.parquet/part.parquet"
SERIALIZED = (
    "json_execute_serialized_sql(json_serialize_sql("
    f"'WITH x AS (COPY (SELECT 1) TO ''{PART}'') FROM x'))"
)


@pytest.mark.parametrize(
    "sql",
    [
        # reading
        "FROM 'secret.csv'",
        "FROM read_text('secret.csv')",
        "FROM read_blob('secret.csv')",
        "FROM sniff_csv('secret.csv')",
        "FROM 'data/secret.parquet'",
        "FROM 'data/*.parquet'",
        "FROM parquet_metadata('data/secret.parquet')",
        "FROM 'data/patches.parquet/../secret.parquet'",
        "FROM read_text('data/patches.parquet/../../secret.csv')",
        "FROM glob('/etc/*')",
        "FROM read_text('/proc/self/environ')",
        "SELECT getenv('SECRET')",
        "FROM read_duckdb('x.db')",
        "FROM manifest",  # a variable of the program
        "FROM config",
        # writing
        "COPY (SELECT 1) TO 'out.csv'",
        f"COPY (SELECT 1) TO '{PART}'",
        "COPY patches TO 'data/images.parquet'",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{PART}'",
        f"EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{PART}'",
        f"EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO '{PART}'",
        f"/* */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{PART}'",
        f"SELECT 1; COPY (SELECT 1) TO '{PART}'",
        f"FROM query('COPY (SELECT 1) TO ''{PART}''')",
        f"WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x",
        f"EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{PART}') SELECT role FROM patches",
        f"SELECT (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x)",
        f"FROM query('WITH x AS (COPY (SELECT 1) TO ''{PART}'') FROM x')",
        f"PIVOT (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x) ON Count",
        f"PIVOT (SELECT 1 AS a) ON a; COPY (SELECT 1) TO '{PART}'",
        f"PIVOT (SELECT 1 AS a) ON a) ; COPY (SELECT 1) TO '{PART}' ; FROM (SELECT 1",
        f"EXPLAIN ANALYZE SELECT 1) ; COPY (SELECT 1) TO '{PART}' ; FROM (SELECT 1",
        f"EXPLAIN PIVOT (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x) ON Count",
        f"EXPLAIN (FORMAT json, ANALYZE) WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x",
        f"EXPLAIN EXPLAIN ANALYZE COPY (SELECT 1) TO '{PART}'",
        f"DESCRIBE WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x",
        f"SUMMARIZE WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x",
        f"VALUES (1), ((WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x))",
        f"FROM (VALUES (1)) AS v, LATERAL (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x)",
        f"SELECT 1 UNION ALL (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x)",
        f"WITH RECURSIVE x AS (COPY (SELECT 1) TO '{PART}') FROM x",
        f"WITH y AS (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x) FROM y",
        f"WITH x AS MATERIALIZED (COPY (SELECT 1) TO '{PART}') SELECT 1",
        f"FROM query('SELECT 1; COPY (SELECT 1) TO ''{PART}''')",
        # DuckDB runs a PIVOT without values in two steps, of which the first would write.
        "PIVOT (SELECT role FROM patches) ON role USING count(*)",
        f"WITH x AS (COPY (SELECT 1) TO '{PART}') PIVOT x ON Count",
        f"EXPLAIN WITH x AS (COPY (SELECT 1) TO '{PART}') PIVOT x ON Count",
        f"SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{PART}') PIVOT x ON Count)",
        f"WITH x AS (COPY (SELECT 1) TO '{PART}') FROM (PIVOT x ON Count)",
        f"WITH x AS (COPY (SELECT 1) TO '{PART}') PIVOT x ON Count IN (1)",
        f"PIVOT (SELECT 1 AS a) ON a IN (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x)",
        # It runs serialized SQL on a connection of its own, at the top level.
        f"FROM {SERIALIZED}",
        f"EXPLAIN ANALYZE FROM {SERIALIZED}",
        f"WITH x AS (FROM {SERIALIZED}) SELECT count(*) FROM x",
        f"SELECT (SELECT count(*) FROM {SERIALIZED})",
        f"FROM query('FROM json_exec' || lower('UTE{SERIALIZED[12:].replace(QUOTE, QUOTE * 2)}'))",
        f"PREPARE p AS COPY (SELECT 1) TO '{PART}'",
        f"CREATE MACRO m() AS TABLE (WITH x AS (COPY (SELECT 1) TO '{PART}') FROM x)",
        "EXPORT DATABASE 'dump'",
        "ATTACH 'x.db'",
        "ATTACH ':memory:' AS x",
        "CREATE TABLE t AS SELECT 1",
        "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
        "DROP VIEW patches",
        # opening the door first
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA profiling_output = 'out.json'",
        "CALL enable_logging(storage = 'file', storage_config = {'path': 'log'})",
        "FROM enable_logging(storage = 'file', storage_config = {'path': 'log'})",
        "FROM enable_profiling(format = 'json', save_location = 'out.json')",
        "INSTALL httpfs",
        "LOAD httpfs",
        # the network
        "FROM 'https://example.com/x.parquet'",
        "FROM 's3://bucket/x.parquet'",
    ],
)
def test_no_way_out(project: Path, sql: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = state(project)
    assert main([sql]) == 1
    out, error = capfd.readouterr()
    assert "xyzzy" not in out + error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert state(project) == before


@pytest.mark.parametrize(
    "sql",
    [
        "FROM 'data/patches.parquet/*.parquet'",
        "FROM 'data/patches.parquet'",
        "FROM read_parquet('data/patches.parquet/*.parquet')",
        "FROM 'data/images.parquet'",
        "FROM parquet_metadata('data/patches.parquet/*.parquet')",
        "EXPLAIN SELECT role FROM patches",
        "EXPLAIN ANALYZE SELECT role FROM patches",
        "EXPLAIN (FORMAT json) SELECT role FROM patches",
        "DESCRIBE patches",
        "SUMMARIZE SELECT role, distance FROM patches",
        "SHOW TABLES",
        "VALUES (1)",
        "-- a comment\nSELECT 1;\n",
        "WITH x AS (SELECT role FROM patches) SELECT count(*) FROM x ;; ",
        "SELECT 1; -- done",
        "/* a */ SELECT ';' /* b */; /* c */",
        "SELECT $$quote '$$ AS x",
        "PIVOT (SELECT role, rank FROM patches) ON role IN ('lr', 'hr') USING count(*)",
        "EXPLAIN PIVOT (SELECT role FROM patches) ON role IN ('lr', 'hr') USING count(*);",
        "EXPLAIN (SELECT role FROM patches)",
    ],
)
def test_questions_are_answered(project: Path, sql: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = state(project)
    assert main([sql]) == 0
    assert capfd.readouterr().out
    assert state(project) == before


def test_the_absolute_path_of_the_manifest_is_open_too(project: Path) -> None:
    assert main([f"FROM '{project}/data/patches.parquet/*.parquet'"]) == 0


def test_a_manifest_in_one_file_opens_no_neighbour(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sql = "SELECT patch_id FROM patches"
    assert main([sql, "--save", "data/mine.parquet"]) == 0
    argv = ["--manifest", "data/mine.parquet"]
    assert main(["SELECT count(*) FROM 'data/mine.parquet'", *argv]) == 0
    assert main(["FROM 'data/patches.parquet/*.parquet'", *argv]) == 1
    assert "is not a file of this manifest; `lasr query --allow-files`" in capfd.readouterr().err


def test_who_is_told_to_may(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["FROM 'secret.csv'", "--allow-files"]) == 0
    assert "xyzzy" in capfd.readouterr().out
    sql = "COPY (SELECT * FROM patches WHERE texture > 0.01) TO 'data/subset.parquet'"
    assert main([sql]) == 1
    error = capfd.readouterr().err
    assert "--save FILE.parquet" in error and "--allow-files" in error
    assert main([sql, "--allow-files"]) == 0
    assert (project / "data" / "subset.parquet").is_file()
