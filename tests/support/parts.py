"""Manifests made by hand."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from lasr.files import atomic_path
from schemas.manifest import Row
from schemas.parquet import rows_to


@contextlib.contextmanager
def write_part(
    path: Path, schema: pa.Schema, metadata: dict[str, Any]
) -> Iterator[Callable[[Iterable[Row]], None]]:
    """One Parquet file that appears only when it is complete; yields what appends rows to it."""
    with atomic_path(path) as temporary, rows_to(temporary, schema, metadata) as write:
        yield write
