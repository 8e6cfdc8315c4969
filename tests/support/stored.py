"""A manifest in storage: the server of the benchmarks, and small files with several row groups."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq

from benchmarks.s3_server import S3, serving
from lasr.storage.filesystem import file_system
from schemas.parquet import table_writer

ADDRESS = "s3://bucket/data/patches.parquet"


def in_groups(manifest: Path, target: Path, rows: int = 5, parts: int = 2) -> Path:
    """The rows of a manifest as parts whose row groups have so many rows, with their digests."""
    table = pq.read_table(manifest)
    target.mkdir(parents=True)
    each = -(-len(table) // parts)
    for number in range(parts):
        part = table.slice(number * each, each)
        with table_writer(target / f"{number}.parquet", table.schema) as write:
            for start in range(0, len(part), rows):
                write(part.slice(start, rows))
    return target


@contextmanager
def on_s3(manifest: Path, folder: Path) -> Iterator[S3]:
    """Serve a copy of a manifest at ADDRESS; S3 is reached by the usual variables alone."""
    inside = folder / "buckets" / "bucket" / "data" / "patches.parquet"
    if manifest.is_dir():
        shutil.copytree(manifest, inside)
    else:
        inside.parent.mkdir(parents=True)
        shutil.copy(manifest, inside)
    with serving(folder / "buckets") as s3, reached(s3):
        yield s3


@contextmanager
def reached(s3: S3) -> Iterator[None]:
    """Have the usual variables name a server, for this process and those that it starts."""
    with patch.dict(os.environ, s3.environment):
        file_system.cache_clear()
        yield
    file_system.cache_clear()
