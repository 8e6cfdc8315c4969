"""What a run leaves in Prefect's UI: counts, the commonest words, a picture of some patches.

Plain data from a published manifest; flows.py hands it to Prefect.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from PIL import Image

from pipeline.query.views import connect
from schemas.manifest import PATCH_SIZE, open_manifest

WORDS = 10  # of each role: one page of Prefect's table
COLUMNS = 8  # photographs in the picture
TILE = 112  # pixels: LR patches twice as large, HR patches half
GAP = 4
QUALITY = 75  # with these sizes a picture of pure noise stays below 200 kB as a data: URI

Row = dict[str, Any]


@dataclass(frozen=True)
class Artifacts:
    """Tables as lists of rows, the picture as a `data:` URI that needs no file server."""

    counts: list[Row]
    words: list[Row]
    picture: str
    untrained: bool  # the words come from a CLIP that knows nothing


def describe(manifest: Path) -> Artifacts:
    """Everything to show of a published manifest. Raises ManifestError, duckdb.Error, OSError."""
    parameters = open_manifest(manifest, columns=()).metadata.get("parameters", {})
    with connect(manifest) as connection:
        return Artifacts(
            counts(connection),
            top_words(connection),
            _data_uri(contact_sheet(connection)),
            bool(parameters.get("untrained")),
        )


def counts(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """Photographs, lr patches and hr patches by status, the commonest status first."""
    return rows_of(
        connection.sql(
            "SELECT status, count(*) AS photographs, sum(n_lr)::BIGINT AS lr,"
            " sum(n_hr)::BIGINT AS hr FROM images GROUP BY status ORDER BY photographs DESC, status"
        )
    )


def top_words(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """The commonest caption words of lr and of hr patches side by side, with their counts."""
    return rows_of(
        connection.sql(f"""
            WITH counted AS (
                SELECT role, word, count(*) AS patches
                FROM (SELECT role, unnest(words) AS word FROM patches) GROUP BY ALL
            ), ranked AS (
                SELECT *, row_number() OVER (PARTITION BY role ORDER BY patches DESC, word) AS place
                FROM counted
            )
            SELECT place,
                any_value(word) FILTER (role = 'lr') AS lr,
                any_value(patches) FILTER (role = 'lr') AS "lr patches",
                any_value(word) FILTER (role = 'hr') AS hr,
                any_value(patches) FILTER (role = 'hr') AS "hr patches"
            FROM ranked WHERE place <= {WORDS} GROUP BY place ORDER BY place
        """)
    )


def contact_sheet(connection: duckdb.DuckDBPyConnection) -> Image.Image:
    """A column a photograph: its farthest (LR) patch above its nearest (HR) one, TILE pixels each.

    image_id is a hash, so its order is a fair draw of photographs, the same at every run. Pixels
    are read for these patches alone.
    """
    chosen = connection.sql(f"""
        SELECT role, dense_rank() OVER (ORDER BY image_id) - 1 AS place, image.bytes
        FROM patches WHERE rank = 0 AND image_id IN (
            SELECT DISTINCT image_id FROM patches ORDER BY image_id LIMIT {COLUMNS}
        )
    """).fetchall()
    step, lines = TILE + GAP, list(PATCH_SIZE)
    sheet = Image.new("RGB", (COLUMNS * step - GAP, len(lines) * step - GAP), "white")
    for role, place, png in chosen:
        # LR patches keep their square pixels: this is what they look like.
        how = Image.Resampling.NEAREST if role == "lr" else Image.Resampling.BOX
        with Image.open(io.BytesIO(png)) as patch:
            tile = patch.convert("RGB").resize((TILE, TILE), how)
        sheet.paste(tile, (place * step, lines.index(role) * step))
    return sheet


def rows_of(answer: duckdb.DuckDBPyRelation) -> list[Row]:
    """An answer as one dictionary a row."""
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


def _data_uri(picture: Image.Image) -> str:
    with io.BytesIO() as buffer:
        picture.save(buffer, format="JPEG", quality=QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
