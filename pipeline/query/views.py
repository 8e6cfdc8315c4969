"""A DuckDB connection with the views of a manifest."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from lasr.errors import one_line
from pipeline.query.limits import limit
from schemas.catalogue import BESIDE, companion
from schemas.manifest import PATCHES, DamagedError, Manifest, open_manifest

log = logging.getLogger(__name__)

_NUMBERS = {
    field.name: {pa.int32(): "INTEGER", pa.float32(): "FLOAT"}[field.type]
    for field in PATCHES
    if field.type in (pa.int32(), pa.float32())
}
# Columns that describe a photograph, not one of its patches.
_PHOTOGRAPH = ("image_id", "image_path", "image_width", "image_height", "split")


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for a Ctrl-C within a query, of which DuckDB makes its own errors."""
    try:
        yield
    except (RuntimeError, duckdb.InterruptException) as error:
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from None
        raise


@interruptible()
def connect(manifest: Path, memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
    """Open a manifest and return a new in-memory database with its views. Raises ManifestError.

    memory_limit: see pipeline.query.limits.
    """
    connection = with_views(open_manifest(manifest, columns=()))
    limit(connection, memory_limit)
    return connection


def with_views(manifest: Manifest) -> duckdb.DuckDBPyConnection:
    """Return a new in-memory database with the views of a manifest.

    The views are `patches`, `words`, `pairs`, `images` and `duplicates`. Those whose columns or
    files are missing are left out, and those of damaged files with a warning. Raises DamagedError.
    """
    connection = duckdb.connect()
    # DuckDB 2.0 reads 1 MB from the beginning of a list column, of which 12 kB are words and most
    # are pixels; without prefetching it reads the pages that it needs, and no others.
    connection.execute("SET disable_parquet_prefetching = true")
    # Not stored in a database file: its relative paths would break in another working directory.
    # Folders such as `role=lr` above a manifest are no columns of it.
    try:
        patches = connection.read_parquet(
            [str(file) for file in manifest.files], hive_partitioning=False
        )
    except (
        duckdb.IOException,
        duckdb.InvalidInputException,
    ) as error:  # damaged since it was opened
        raise DamagedError(manifest.path, error) from error
    patches = patches.project(projection(manifest.schema))
    patches.create_view("patches")
    for title in BESIDE:
        file, name = companion(manifest, title), title.split(".")[0]
        if file.suffix == ".parquet" and file.is_file():
            try:
                beside = connection.read_parquet(str(file), hive_partitioning=False)
            except (duckdb.IOException, duckdb.InvalidInputException) as error:
                reason = one_line(error, 200)
                log.warning("%s: damaged, there is no view '%s' (%s)", file, name, reason)
            else:
                beside.create_view(name)
    columns = patches.columns  # as DuckDB calls them: it renames some, such as an empty name
    if "words" in columns:
        connection.execute(f"CREATE VIEW words AS {_words(columns)}")
    if {"image_id", "role"} <= {*columns}:
        connection.execute(f"CREATE VIEW pairs AS {_pairs(columns)}")
    return connection


def quoted(name: str) -> str:
    """The name of a column in SQL, whatever characters the user gave it."""
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def projection(schema: pa.Schema) -> str:
    """The columns of a manifest, numbers in the types of `PATCHES`: unsigned ones overflow."""
    casts = []
    for name, sql in _NUMBERS.items():
        if name in schema.names and schema.field(name).type != PATCHES.field(name).type:
            casts.append(f"CAST({name} AS {sql}) AS {name}")
    return f"* REPLACE ({', '.join(casts)})" if casts else "*"


def _words(columns: list[str]) -> str:
    """One row per patch and word, best word first, with its rank and score, without pixels."""
    lists = ("words", "word_scores")
    others = [quoted(name) for name in columns if name not in ("image", "caption", *lists)]
    score = ", unnest(word_scores) AS score" if "word_scores" in columns else ""
    return (
        f"SELECT {', '.join(others)}, generate_subscripts(words, 1) - 1 AS word_rank,"
        f" unnest(words) AS word{score} FROM patches"
    )


def _pairs(columns: list[str]) -> str:
    """Each far patch with each near patch of its photograph, as the trainer draws pairs."""
    shared = [f"lr.{name}" for name in _PHOTOGRAPH if name in columns]
    own = [name for name in columns if name not in (*_PHOTOGRAPH, "role", "image")]
    both = [
        f"{role}.{quoted(name)} AS {quoted(f'{role}_{name}')}"
        for name in own
        for role in ("lr", "hr")
    ]
    return (
        f"SELECT {', '.join(shared + both)} FROM patches AS lr JOIN patches AS hr"
        " ON lr.image_id = hr.image_id AND lr.role = 'lr' AND hr.role = 'hr'"
    )
