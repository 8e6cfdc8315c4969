"""What the report says, against the manifest read by other means."""

from collections import Counter
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.query.views import connect
from pipeline.report.comparison import Comparison, Histogram
from pipeline.report.config import ReportConfig
from pipeline.report.data import WORDS, ReportData
from pipeline.report.page import build_page
from schemas.manifest import open_manifest
from tests.support.parts import derived


def test_the_answer_against_plain_python(manifest: Path) -> None:
    rows = pq.read_table(manifest, columns=["image_id", "role", "sharpness_56"]).to_pylist()
    means = {
        (i, role): fmean(r["sharpness_56"] for r in rows if (r["image_id"], r["role"]) == (i, role))
        for i, role in {(row["image_id"], row["role"]) for row in rows}
    }
    ids = {i for i, _ in means}
    with connect(manifest) as connection:
        first = ReportData(connection, 0).comparisons()[0]
    assert first.lower == sum(means[i, "lr"] < means[i, "hr"] for i in ids)
    assert first.photographs == len(ids) == sum(*first.ratios.counts.values())
    assert first.far == pytest.approx(median(means[i, "lr"] for i in ids))
    assert first.near == pytest.approx(median(means[i, "hr"] for i in ids))


def test_no_is_said_where_far_is_not_worse(manifest: Path, tmp_path: Path) -> None:
    lines = {
        "yes": "Yes, in 100% of the photographs",
        "no": "No: in 100% of the photographs",
        "open": "not enough to tell",
    }
    textures = {
        "yes": "CASE role WHEN 'lr' THEN 0.01 ELSE 0.05 END",
        "no": "CASE role WHEN 'hr' THEN 0.01 ELSE 0.05 END",
        "open": "CASE WHEN (role = 'lr') = (image_path < 'f') THEN 0.01 ELSE 0.05 END",
    }
    for answer, texture in textures.items():
        values = f"{texture} AS texture, {texture} AS sharpness_56"
        out = derived(manifest, tmp_path / f"{answer}.parquet", values)
        page, _ = build_page(ReportConfig(manifest=out, photographs=0, pairs=0))
        assert [line in page for line in lines.values()] == [name == answer for name in lines]


def test_wilsons_interval() -> None:
    from scipy.stats import binomtest  # takes seconds

    for lower, n in [(14, 18), (0, 10), (7, 7), (400, 1000)]:
        found = Comparison("texture", 0, 0, n, lower, Histogram([], {})).interval
        upstream = binomtest(lower, n).proportion_ci(0.95, method="wilson")
        assert found == pytest.approx((upstream.low, upstream.high), abs=1e-12)


def test_words_against_plain_python(manifest: Path) -> None:
    rows = pq.read_table(manifest, columns=["role", "words"]).to_pylist()
    counted = {
        r: Counter(w for p in rows if p["role"] == r for w in p["words"]) for r in ("lr", "hr")
    }
    total = Counter(p["role"] for p in rows)
    with connect(manifest) as connection:
        words = ReportData(connection, 0).words()
    assert len(words) == 2 * WORDS
    for row in words:
        assert (row["lr"], row["hr"]) == (counted["lr"][row["word"]], counted["hr"][row["word"]])
        assert row["lr_share"] == row["lr"] / total["lr"]
        assert (row["ratio"] > 0) == (row["lr_share"] > row["hr_share"])
    assert [row["ratio"] > 0 for row in words] == [True] * WORDS + [False] * WORDS


def test_histograms_count_every_patch(manifest: Path) -> None:
    rows = pq.read_table(manifest, columns=["role", "distance", "texture"]).to_pylist()
    with connect(manifest) as connection:
        questions = ReportData(connection, 0)
        for column, logarithmic in (("distance", False), ("texture", True)):
            histogram = questions.histogram(column, logarithmic)
            assert histogram is not None
            for role, counts in histogram.counts.items():
                values = [row[column] for row in rows if row["role"] == role]
                inside = np.clip(values, histogram.edges[0], histogram.edges[-1])
                expected, _ = np.histogram(inside, histogram.edges)
                assert sum(counts) == len(values)
                # DuckDB counts a value on an edge below it, numpy above it.
                assert abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 2


def test_pairs_are_of_one_photograph_and_differ(manifest: Path) -> None:
    with connect(manifest) as connection:
        questions = ReportData(connection, 3)
        pairs = questions.pairs(20)
        ids = [pair[role] for pair in pairs for role in ("lr", "hr")]
        patches = questions.patches(open_manifest(manifest), ids)
    for pair in pairs:
        assert {patches[pair[role]]["image_id"] for role in ("lr", "hr")} == {pair["image_id"]}
        assert [patches[pair[role]]["role"] for role in ("lr", "hr")] == ["lr", "hr"]
    assert len({pair["image_id"] for pair in pairs[:7]}) == 7  # every photograph before any again
    assert len({pair["lr"] for pair in pairs}) == len({pair["hr"] for pair in pairs}) == 20


def test_what_is_said_of_all_rows_reads_no_pixels(manifest: Path, tmp_path: Path) -> None:
    blind = tmp_path / "patches.parquet"
    with connect(manifest) as connection:
        connection.execute(f"COPY (SELECT * EXCLUDE image FROM patches) TO '{blind}'")
    with connect(blind) as connection:
        questions = ReportData(connection, 0)
        assert questions.roles() and questions.models() and questions.statuses()
        assert questions.words() and questions.comparisons() and questions.pairs(3)
        assert questions.histogram("texture", True) and questions.histogram("distance", False)
        photographs = questions.sample(2)
        assert questions.patches_of([photograph["image_id"] for photograph in photographs])
