"""What the report asks of a manifest in SQL: statistics of all rows, and random samples.

DuckDB streams the columns that a query names, so a manifest of millions of rows is never in memory.
Pixels are read for the sampled patches alone (`ReportData.patches`).
"""

import re
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np

from pipeline.query.mirror import Mirror
from pipeline.query.pixels import rows_of_patches
from pipeline.query.views import projection
from pipeline.report.comparison import Comparison, Histogram
from pipeline.report.overview import Row, counts, rows_of
from pipeline.report.worth import Worth, worth
from schemas.manifest import Manifest, Role

BINS = 36
WORDS = 12  # of each role
# Columns of which the page needs all rows, besides those of MEASURES and _DRAWABLE.
COLUMNS = ("rank", "words", "depth_model", "caption_model", "strategy", "luma", "contrast", "phash",
           "colour_a", "colour_b")  # fmt: skip
EXAMPLES = 3  # photographs named for each status
# Compared between far and near, if the manifest has them; the first decides the page's answer.
MEASURES = ("sharpness_56", "texture", "sharpness")
# A row that lacks one of these, or has a size of its own, is counted but not drawn.
_DRAWABLE = """(
    FROM {view} WHERE size = CASE role WHEN 'lr' THEN 56 WHEN 'hr' THEN 224 END
    AND x >= 0 AND y >= 0 AND image_id IS NOT NULL AND patch_id IS NOT NULL
    AND image_path IS NOT NULL AND image_width > 0 AND image_height > 0
    AND distance IS NOT NULL AND texture IS NOT NULL
)"""
DRAWABLE = _DRAWABLE.format(view="patches")
# What the page shows of a patch, besides what _DRAWABLE needs.
_SHOWN = ("rank", "depth_model", "words", "image")


class ReportData:
    """Queries on a connection with the views of a manifest; see `pipeline.query.views.connect`.

    seed: of the random samples. mirror: of a manifest in storage, whose columns it has.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, seed: int, mirror: Mirror | None = None
    ):
        self.connection, self.seed, self.mirror = connection, str(seed), mirror
        views = self._ask("SELECT view_name AS name FROM duckdb_views() WHERE NOT internal")
        self.has_catalogue = "images" in {view["name"] for view in views}
        self.columns = {row["column_name"] for row in self._ask("DESCRIBE patches")}

    def _ask(self, sql: str, **parameters: Any) -> list[Row]:
        return rows_of(self.connection.sql(sql, params=parameters))

    def reads(self) -> str:
        """A statement that reads every column of which the page needs all rows."""
        names = sorted({*re.findall(r"[a-z_]+", DRAWABLE), *COLUMNS, *MEASURES} & self.columns)
        images = ", (FROM images)" if self.has_catalogue else ""
        return f"SELECT * FROM (SELECT {', '.join(names)} FROM patches){images}"

    def statuses(self) -> list[Row]:
        """Photographs and patches by status. Without a catalogue only `ok` is known."""
        if self.has_catalogue:
            return counts(self.connection)
        return self._ask(
            "SELECT 'ok' AS status, count(DISTINCT image_id) AS photographs,"
            " count(*) FILTER (role = 'lr') AS lr, count(*) FILTER (role = 'hr') AS hr FROM patches"
        )

    def rejected(self) -> list[Row]:
        """A random sample of the photographs of every status but ok, with the reasons."""
        if not self.has_catalogue:
            return []
        return self._ask(
            "SELECT status, path, error FROM images WHERE status <> 'ok' QUALIFY row_number() OVER"
            f" (PARTITION BY status ORDER BY md5(path || $seed), path) <= {EXAMPLES}"
            " ORDER BY status, path",
            seed=self.seed,
        )

    def roles(self) -> dict[Role, Row]:
        """For each role the number of patches and the quartiles of distance and measures."""
        quartiles = ", ".join(
            f"quantile_cont({name}, [0.25, 0.5, 0.75]) AS {name}" for name in self._measured()
        )
        rows = self._ask(
            f"SELECT role, count(*) AS patches, {quartiles} FROM patches"
            " WHERE role IN ('lr', 'hr') GROUP BY role ORDER BY role DESC"
        )
        return {row["role"]: row for row in rows}

    def _measured(self) -> list[str]:
        return [name for name in ("distance", *MEASURES) if name in self.columns]

    def models(self) -> list[Row]:
        """Each combination of models and strategy with its number of rows."""
        return self._ask(
            "SELECT depth_model, caption_model, strategy, count(*) AS patches FROM patches"
            " GROUP BY ALL ORDER BY patches DESC"
        )

    def histogram(self, column: str, logarithmic: bool) -> Histogram | None:
        """Histogram of a column by role, or None if it holds no finite number.

        logarithmic: bins of equal ratio between the 0.1 and 99.9 percentiles. Values outside, also
        zero, are counted in the first and last bin.
        """
        if column not in self.columns:
            return None
        ends = [0.001, 0.999] if logarithmic else [0.0, 1.0]
        finite = f"isfinite({column}) AND role IN ('lr', 'hr')"
        (found,) = self._ask(
            f"SELECT quantile_cont({column}, {ends}) AS ends FROM patches WHERE {finite}"
            + (f" AND {column} > 0" if logarithmic else "")
        )
        if found["ends"] is None:
            return None
        low, high = found["ends"]
        if column in ("distance", "luma"):
            low, high = 0.0, 1.0
        high = max(high, low * 1.01 + 1e-9)
        edges = (np.geomspace if logarithmic else np.linspace)(low, high, BINS + 1).tolist()
        rows = self._ask(
            f"SELECT role AS name, histogram({column}::DOUBLE, {edges[1:-1]}::DOUBLE[]) AS bins"
            f" FROM patches WHERE {finite} GROUP BY role ORDER BY role DESC"
        )
        return _binned(edges, rows)

    def comparisons(self) -> list[Comparison]:
        """Far against near patches of each photograph, in every measure that the manifest has."""
        return [c for name in MEASURES if name in self.columns and (c := self._compare(name))]

    def _compare(self, measure: str) -> Comparison | None:
        by_photograph = f"""
            WITH each AS (
                SELECT avg({measure}) FILTER (role = 'lr') AS far,
                    avg({measure}) FILTER (role = 'hr') AS near
                FROM patches GROUP BY image_id HAVING far IS NOT NULL AND near IS NOT NULL
            )"""
        (row,) = self._ask(
            by_photograph + "SELECT count(*) AS photographs, count(*) FILTER (far < near) AS lower,"
            " median(far) AS far, median(near) AS near FROM each"
        )
        if not row["photographs"]:
            return None
        edges = np.linspace(-4, 4, BINS + 1).tolist()  # a sixteenth to sixteen times
        ratio = "log2(greatest(far, 1e-12) / greatest(near, 1e-12))"
        rows = self._ask(
            f"{by_photograph} SELECT 'ratio' AS name,"
            f" histogram({ratio}, {edges[1:-1]}::DOUBLE[]) AS bins FROM each"
        )
        return Comparison(measure, ratios=_binned(edges, rows), **row)

    def worth(self, words_are_noise: bool) -> Worth:
        """Whether the manifest is worth learning from; see `pipeline.report.worth`."""
        return worth(self._ask, self.columns, words_are_noise)

    def words(self) -> list[Row]:
        """The words that separate the roles: WORDS typical of far, then WORDS typical of near.

        Each has the number of patches of either role that it describes and the log2 ratio of its
        shares; half a patch is added to both counts so that the ratio is finite. Sorted by the
        ratio over its standard error (Monroe, Colaresi, Quinn 2008), or rare words would lead.
        """
        if "words" not in self.columns:
            return []
        return self._ask(f"""
            WITH counted AS (
                SELECT word, count(*) FILTER (role = 'lr') AS lr,
                    count(*) FILTER (role = 'hr') AS hr
                FROM (SELECT role, unnest(words) AS word FROM patches) GROUP BY word
            ), total AS (
                SELECT count(*) FILTER (role = 'lr') AS lr, count(*) FILTER (role = 'hr') AS hr
                FROM patches
            ), compared AS (
                SELECT word, c.lr, c.hr, c.lr / t.lr AS lr_share, c.hr / t.hr AS hr_share,
                    log2((c.lr + 0.5) / (t.lr + 1)) - log2((c.hr + 0.5) / (t.hr + 1)) AS ratio,
                    ratio / sqrt(1 / (c.lr + 0.5) + 1 / (c.hr + 0.5)) AS score
                FROM counted AS c, total AS t WHERE t.lr > 0 AND t.hr > 0
            ), ranked AS (
                SELECT *, row_number() OVER (ORDER BY score DESC, word) AS from_far,
                    row_number() OVER (ORDER BY score, word) AS from_near FROM compared
            )
            SELECT word, lr, hr, lr_share, hr_share, ratio FROM ranked
            WHERE (from_far <= {WORDS} AND ratio > 0) OR (from_near <= {WORDS} AND ratio < 0)
            ORDER BY score DESC, word
        """)

    def sample(self, photographs: int) -> list[Row]:
        """A random sample of the photographs that have patches."""
        return self._ask(
            "SELECT image_id, any_value(image_path) AS path, any_value(image_width) AS width,"
            f" any_value(image_height) AS height FROM {DRAWABLE} GROUP BY image_id"
            " ORDER BY md5(image_id || $seed) LIMIT $n",
            seed=self.seed,
            n=photographs,
        )

    def patches_of(self, image_ids: Sequence[str]) -> list[str]:
        """Ids of all patches of these photographs."""
        rows = self._ask(
            f"SELECT patch_id FROM {DRAWABLE} WHERE image_id IN (SELECT unnest($ids))",
            ids=list(image_ids),
        )
        return [row["patch_id"] for row in rows]

    def pairs(self, pairs: int) -> list[Row]:
        """A random sample of pairs: a far and a near patch of one photograph.

        Every photograph is drawn once before any is drawn again.
        """
        return self._ask(
            f"""
            WITH photographs AS (
                SELECT image_id FROM {DRAWABLE} GROUP BY image_id
                HAVING bool_or(role = 'lr') AND bool_or(role = 'hr')
                ORDER BY md5(image_id || $seed) LIMIT $n
            ), drawn AS (
                SELECT patch_id, image_id, role, row_number() OVER (
                    PARTITION BY image_id, role ORDER BY md5(patch_id || $seed)
                ) AS turn FROM {DRAWABLE} SEMI JOIN photographs USING (image_id)
            )
            SELECT far.image_id, far.patch_id AS lr, near.patch_id AS hr, far.turn
            FROM drawn AS far JOIN drawn AS near
            ON far.image_id = near.image_id AND far.turn = near.turn
                AND far.role = 'lr' AND near.role = 'hr'
            ORDER BY far.turn, md5(far.image_id || $seed) LIMIT $n
            """,
            seed=self.seed,
            n=pairs,
        )

    def patches(self, manifest: Manifest, patch_ids: Sequence[str]) -> dict[str, Row]:
        """Patches by id with their pixels (`png`, bytes); lr first, by rank."""
        columns = [*re.findall(r"[a-z_]+", DRAWABLE), *_SHOWN]
        found = rows_of_patches(self.connection, manifest, patch_ids, columns, self.mirror)
        self.connection.from_arrow(found).project(projection(found.schema)).create_view("shown")
        rows = self._ask(
            "SELECT patch_id, image_id, image_path, role, x, y, size, distance, texture,"
            " coalesce(depth_model, '') AS depth_model,"
            " list_filter(coalesce(words, []), lambda word: word IS NOT NULL) AS words,"
            f" image.bytes AS png FROM {_DRAWABLE.format(view='shown')}"
            " ORDER BY role DESC, rank, patch_id"
        )
        return {row["patch_id"]: row for row in rows}


def _binned(edges: list[float], rows: list[Row]) -> Histogram:
    """Read DuckDB's histogram: a count for each inner edge, and one for values above them."""
    counts = {}
    for row in rows:
        bins = row["bins"] or {}
        counts[row["name"]] = [bins.get(edge, 0) for edge in edges[1:-1]]
        counts[row["name"]].append(sum(bins.values()) - sum(counts[row["name"]]))
    return Histogram(edges, counts)
