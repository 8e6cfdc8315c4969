"""Manifests made by hand."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.files import atomic_path
from pipeline.query.views import connect
from schemas.manifest import PATCHES, Row
from schemas.parquet import rows_to


@contextlib.contextmanager
def write_part(
    path: Path, schema: pa.Schema, metadata: dict[str, Any]
) -> Iterator[Callable[[Iterable[Row]], None]]:
    """One Parquet file that appears only when it is complete; yields what appends rows to it."""
    with atomic_path(path) as temporary, rows_to(temporary, schema, metadata) as write:
        yield write


def derived(manifest: Path, out: Path, replace: str) -> Path:
    """A manifest of other values, with the build's metadata."""
    with connect(manifest) as connection:
        table = connection.sql(f"SELECT * REPLACE ({replace}) FROM patches").to_arrow_table()
    metadata = pq.read_schema(next(manifest.glob("*.parquet"))).metadata
    names = [name for name in PATCHES.names if name in table.schema.names]
    schema = PATCHES.empty_table().select(names).schema.with_metadata(metadata)
    pq.write_table(table.select(names).cast(schema), out)
    return out
