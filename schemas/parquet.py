"""How the Parquet files of a manifest and those beside it are written, and their metadata."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.digest import add_parquet_digest, blank_digest

METADATA_KEY = b"la-sr"
ROW_GROUP = 256  # rows; small, so that reading a few patches does not read many others


def encoded_metadata(schema: pa.Schema, metadata: dict[str, Any]) -> dict[bytes, bytes]:
    """Encode metadata for a Parquet file: as JSON, under the key METADATA_KEY.

    A schema with an image column also gets the entry by which `datasets` decodes the images.
    """
    encoded = {METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()}
    if "image" in schema.names:
        encoded[b"huggingface"] = b'{"info": {"features": {"image": {"_type": "Image"}}}}'
    return encoded


def decoded_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Return the metadata that `encoded_metadata` wrote, or {} if the file has none.

    Raises ValueError if it is not a JSON object.
    """
    decoded = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if not isinstance(decoded, dict):
        raise ValueError(f"a JSON object is expected, not {type(decoded).__name__}")
    return decoded


@contextlib.contextmanager
def table_writer(
    path: Path, schema: pa.Schema, at_end: Callable[[], dict[str, str]] = dict
) -> Iterator[Callable[[pa.Table], None]]:
    """Write a Parquet file with the encodings and digests of a manifest (see `schemas.digest`).

    Yields a function that appends a table as a row group. at_end: called at the end for further
    metadata of the file, which pyarrow does not copy into files made from it.
    """
    # PNGs are already compressed: compressing them again costs time and saves nothing.
    plain = {"image.bytes"}
    groups = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression={leaf: "none" if leaf in plain else "zstd" for leaf in _leaves(schema)},
        use_dictionary=[leaf for leaf in _leaves(schema) if leaf not in plain],
        write_page_checksum=True,
    ) as writer:

        def write(table: pa.Table) -> None:
            nonlocal groups
            writer.write_table(table, row_group_size=max(len(table), 1))
            groups += 1

        yield write
        writer.add_key_value_metadata(at_end() | blank_digest(groups))
    add_parquet_digest(path)


@contextlib.contextmanager
def rows_to(
    path: Path,
    schema: pa.Schema,
    metadata: dict[str, Any],
    at_end: Callable[[], dict[str, str]] = dict,
) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """Write a Parquet file row by row; yields a function that appends rows.

    Memory holds at most one row group, about 15 MB of patches. at_end: as for `table_writer`.
    """
    schema = schema.with_metadata(encoded_metadata(schema, metadata))
    waiting: list[dict[str, Any]] = []
    with table_writer(path, schema, at_end) as write_table:

        def flush() -> None:
            if waiting:
                write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting.clear()

        def write(rows: Iterable[dict[str, Any]]) -> None:
            for row in rows:
                waiting.append(row)
                if len(waiting) == ROW_GROUP:
                    flush()

        yield write
        flush()


def write_table(path: Path, table: pa.Table, metadata: dict[str, Any]) -> None:
    """Write a table that fits into memory."""
    schema = table.schema.with_metadata(encoded_metadata(table.schema, metadata))
    with table_writer(path, schema) as write:
        write(table.cast(schema))


def _leaves(schema: pa.Schema, prefix: str = "") -> list[str]:
    """Return Parquet's column paths, such as `image.bytes` and `words.list.element`."""
    paths = []
    for column in schema:
        if pa.types.is_struct(column.type):
            paths += _leaves(pa.schema(list(column.type)), f"{prefix}{column.name}.")
        elif pa.types.is_list(column.type):
            paths.append(f"{prefix}{column.name}.list.element")
        else:
            paths.append(prefix + column.name)
    return paths
