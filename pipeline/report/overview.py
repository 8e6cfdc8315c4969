"""An overview of a manifest: counts, the most frequent words, and a contact sheet.

`lasr report` shows the counts and words; the Prefect flow shows all three as artifacts of a run.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from PIL import Image, ImageDraw

from lasr.pictures.png import decode_patch
from pipeline.query.views import connect
from schemas.manifest import PATCH_SIZE, open_manifest

WORDS = 10  # of each role: one page of Prefect's table
COLUMNS = 8  # photographs on the contact sheet
TILE = 112  # pixels: LR patches at twice their size, HR patches at half
GAP = 4
QUALITY = 75  # of JPEG; a contact sheet of pure noise stays below 200 kB as a data: URI

Row = dict[str, Any]


@dataclass(frozen=True)
class Overview:
    """Tables as lists of rows, the contact sheet as a `data:` URI."""

    counts: list[Row]
    words: list[Row]
    contact_sheet: str
    untrained: bool  # the words come from an untrained CLIP


def describe(manifest: Path) -> Overview:
    """Return the overview of a manifest. Raises ManifestError, duckdb.Error, ValueError."""
    parameters = open_manifest(manifest, columns=()).metadata.get("parameters", {})
    with connect(manifest) as connection:
        return Overview(
            counts(connection),
            top_words(connection),
            _data_uri(contact_sheet(connection)),
            bool(parameters.get("untrained")),
        )


def counts(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """Photographs, lr patches and hr patches by status, the most frequent status first."""
    return rows_of(
        connection.sql(
            "SELECT status, count(*) AS photographs, sum(n_lr)::BIGINT AS lr,"
            " sum(n_hr)::BIGINT AS hr FROM images GROUP BY status ORDER BY photographs DESC, status"
        )
    )


def top_words(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """The most frequent words of lr and of hr patches side by side, with their counts."""
    return rows_of(
        connection.sql(f"""
            WITH counted AS (
                SELECT role, word, count(*) AS patches
                FROM (SELECT role, unnest(words) AS word FROM patches) GROUP BY ALL
            ), ranked AS (
                SELECT *, row_number() OVER (PARTITION BY role ORDER BY patches DESC, word) AS rank
                FROM counted
            )
            SELECT rank,
                any_value(word) FILTER (role = 'lr') AS lr,
                any_value(patches) FILTER (role = 'lr') AS "lr patches",
                any_value(word) FILTER (role = 'hr') AS hr,
                any_value(patches) FILTER (role = 'hr') AS "hr patches"
            FROM ranked WHERE rank <= {WORDS} GROUP BY rank ORDER BY rank
        """)
    )


def contact_sheet(connection: duckdb.DuckDBPyConnection) -> Image.Image:
    """Draw a column for each photograph: its farthest (LR) patch above its nearest (HR) patch.

    Photographs are taken in the order of image_id, a hash, so they are a fixed random sample. Only
    the pixels of these patches are read.
    """
    chosen = connection.sql(f"""
        SELECT role, dense_rank() OVER (ORDER BY image_id) - 1 AS position, image.bytes
        FROM patches WHERE rank = 0 AND role IN ('lr', 'hr') AND image_id IN (
            SELECT DISTINCT image_id FROM patches ORDER BY image_id LIMIT {COLUMNS}
        )
    """).fetchall()
    step, lines = TILE + GAP, list(PATCH_SIZE)
    sheet = Image.new("RGB", (COLUMNS * step - GAP, len(lines) * step - GAP), "white")
    for role, position, png in chosen:
        # LR patches are enlarged without smoothing, so that their pixels can be seen.
        how = Image.Resampling.NEAREST if role == "lr" else Image.Resampling.BOX
        tile = patch_or_cross(png, PATCH_SIZE[role]).resize((TILE, TILE), how)
        sheet.paste(tile, (position * step, lines.index(role) * step))
    return sheet


def patch_or_cross(png: bytes | None, side: int) -> Image.Image:
    """Decode a patch; in place of one that cannot be decoded, a cross of its size."""
    try:
        return Image.fromarray(decode_patch(png, side))
    except ValueError:
        cross = Image.new("RGB", (side, side), (160, 160, 160))
        draw = ImageDraw.Draw(cross)
        for ends in ((0, 0, side, side), (0, side, side, 0)):
            draw.line(ends, fill=(90, 90, 90), width=side // 28)
        return cross


def rows_of(answer: duckdb.DuckDBPyRelation) -> list[Row]:
    """Return the rows of an answer as dictionaries."""
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


def _data_uri(picture: Image.Image) -> str:
    with io.BytesIO() as buffer:
        picture.save(buffer, format="JPEG", quality=QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
