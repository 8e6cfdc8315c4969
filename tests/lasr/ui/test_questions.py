"""Questions asked in the page: DuckDB's answers, and no other file of the disk."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lasr.pictures.png import decode_png
from lasr.ui.server import Page
from pipeline.query.questions import QUESTIONS
from pipeline.query.views import connect
from tests.support.page import (
    SECRET,
    Client,
    ask,
    client,
    content_of,
    line,
)


@pytest.mark.parametrize(
    "sql",
    [
        "FROM read_text('secret.txt')", "FROM 'secret.txt'", "FROM read_blob('../secret.txt')",
        "FROM read_csv('/etc/passwd')", "FROM read_text('/proc/self/environ')", "FROM glob('/*')",
        "FROM read_text('../dropped/*/*')", "SELECT getenv('HOME')", "FROM read_duckdb('x.db')",
        "COPY patches TO 'out.csv'", "EXPLAIN ANALYZE COPY patches TO 'out.csv'",
        "WITH x AS (COPY (SELECT 1) TO 'out.csv') FROM x", "INSTALL httpfs", "LOAD httpfs",
        "ATTACH 'x.db'", "SET enable_external_access = true", "CREATE TABLE x AS SELECT 1",
        "PRAGMA database_list", "SELECT 1; SELECT 2", "FROM 'http://127.0.0.1/x.csv'",
        "SELECT patch_id FROM read_text('secret.txt'), patches", "", "SELEC 1",
        "FROM manifest", "SELECT content FROM read_text('secret.txt')",
    ],
)  # fmt: skip
def test_sql_reads_no_other_file_and_writes_none(web: Client, tmp_path: Path, sql: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    answer = ask(web, sql)
    assert SECRET not in json.dumps(answer) and "root:" not in json.dumps(answer)
    assert line(answer).startswith("SQL: "), answer
    assert sorted(tmp_path.rglob("*")) == before


def test_ready_questions_have_the_answers_of_duckdb(web: Client, manifest: Path) -> None:
    with connect(manifest) as connection:
        for name, question in QUESTIONS.items():
            answer = ask(web, question.sql)
            relation = connection.sql(question.sql)
            columns, rows = list(relation.columns), relation.fetchall()
            assert answer["columns"] == columns, name
            assert len(answer["rows"]) == min(len(rows), 200)
            assert answer["more"] == (len(rows) > 200)
            texts = [at for at, is_number in enumerate(answer["numbers"]) if not is_number]

            def key(row: Sequence[Any], texts: list[int] = texts) -> list[str]:
                return [str(row[at]) for at in texts]

            given = answer["rows"]
            if "ORDER BY" not in question.sql:  # DuckDB's threads end in any order
                assert len(rows) <= 200
                given, rows = sorted(given, key=key), sorted(rows, key=key)
            for got, row in zip(given, rows, strict=False):
                for is_number, value, expected in zip(answer["numbers"], got, row, strict=True):
                    if is_number and expected is not None:
                        assert value == pytest.approx(float(expected)), name
                    elif isinstance(expected, str):
                        assert value == expected, name
            has_ids = bool({"patch_id", "id", "kept"} & set(columns)) and columns[0] != "kind"
            assert bool(answer["patches"]) == (has_ids and bool(rows)), name


def test_pictures_are_those_of_the_patches(web: Client, manifest: Path) -> None:
    answer = ask(web, "SELECT patch_id AS kept, 1 AS n FROM patches ORDER BY patch_id DESC LIMIT 5")
    table = pq.read_table(manifest).sort_by([("patch_id", "descending")]).slice(0, 5).to_pylist()
    assert [patch["id"] for patch in answer["patches"]] == [row["patch_id"] for row in table]
    for patch, row in zip(answer["patches"], table, strict=True):
        assert (patch["role"], patch["photograph"]) == (row["role"], row["image_path"])
        assert patch["words"] == row["words"][:6]
        shown = np.asarray(Image.open(io.BytesIO(content_of(patch["pixels"]))), int)
        stored = decode_png(row["image"]["bytes"]).astype(int)
        assert shown.shape == stored.shape
        assert abs(shown - stored).mean() <= (0 if row["role"] == "lr" else 4)


def test_values_are_small_and_plain(web: Client) -> None:
    sql = """SELECT image, repeat('x', 1000) AS long, 'nan'::FLOAT AS nan,
        2::HUGEINT ** 70 AS large, 9007199254740993 AS exact, [1, 2] AS list, {'a': 1} AS struct,
        NULL AS nothing, true AS yes,
        1.5::DECIMAL(4, 1) AS decimal, 'a'::BLOB AS blob, MAP {'a': 1} AS map,
        DATE '2026-01-02' AS day FROM patches ORDER BY patch_id LIMIT 1"""
    answer = ask(web, sql)
    (row,) = answer["rows"]
    values = dict(zip(answer["columns"], row, strict=True))
    assert str(values.pop("image")).endswith(".png") and len(values.pop("long")) == 300
    assert float(values.pop("large")) == 2**70
    assert values == {
        "nan": "nan", "exact": "9007199254740993", "list": "[1, 2]", "struct": "{'a': 1}",
        "nothing": None, "yes": True, "decimal": 1.5, "blob": "a", "map": "{a=1}",
        "day": "2026-01-02",
    }  # fmt: skip
    assert len(ask(web, "FROM range(1000)")["rows"]) == 200 and ask(web, "FROM range(1000)")["more"]


def test_a_question_that_takes_too_long_or_too_much(page: Page, manifest: Path) -> None:
    slow = (
        "SELECT count(*) FROM range(10000000000) a, range(1000) b WHERE a.range % 7 = b.range % 3"
    )
    for limits, said in (
        ({"timeout": 0.3}, "SQL: no answer after 0.3 s; allow more with --timeout"),
        ({"memory_limit": "20MB"}, "needs more memory than --memory-limit allows"),
    ):
        config = page.config.model_copy(update=limits)
        other = Page(config, page.store.new())
        sql = (
            slow
            if "timeout" in limits
            else "SELECT string_agg(range::VARCHAR) FROM range(50000000)"
        )
        assert said in line(ask(client(other), sql))
        assert ask(client(other), "SELECT 1 AS a")["rows"] == [[1]]
        other.close()


def test_without_a_manifest_the_rest_works(page: Page, tmp_path: Path) -> None:
    other = Page(page.config.model_copy(update={"manifest": None}), page.store.new())
    about = client(other).get("/api/about").json()
    assert "data/patches.parquet: no manifest there" in about["manifest"]["problem"]
    assert "no manifest there" in line(ask(client(other), "SELECT 1"))
    assert about["weights"][0]["label"] == "tiny-rrdb" and "scene-layout" in about["estimators"]
    other.close()
