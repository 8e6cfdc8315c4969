"""Damage on disk, made on purpose."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq

from schemas.parquet import table_writer


def flip(content: bytes, bit: int) -> bytes:
    """The content with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flips(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Copies of the content with one bit changed: at random, and in its first and last bytes."""
    rng = random.Random(seed)
    bits = [rng.randrange(8 * len(content)) for _ in range(number)]
    for bit in [0, 77, 8 * len(content) - 1, 8 * len(content) - 700, *bits]:
        yield flip(content, bit)


def spoil(path: Path, how: str) -> None:
    """Damage a file in place; `silent flip` leaves its time of change as it was."""
    state, content = path.stat(), path.read_bytes()
    path.unlink()  # a hard link to it keeps its bytes
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        cut = {"empty": b"", "cut": content[: len(content) // 2]}
        path.write_bytes(cut.get(how, flip(content, len(content) // 3 * 8)))
    if how == "silent flip":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def with_a_changed_row_group(manifest: Path, target: Path, group: int, rows: int) -> Path:
    """The rows of a manifest in one file, a bit changed in the last picture of a row group.

    rows: of a row group. The pages have no checksums, so that only the digest of the row group
    tells.
    """
    table, writer = pq.read_table(manifest), pq.ParquetWriter

    def without_checksums(*given: object, **options: object) -> pq.ParquetWriter:
        return writer(*given, **options | {"write_page_checksum": False})

    with (
        patch.object(pq, "ParquetWriter", without_checksums),
        table_writer(target, table.schema) as write,
    ):
        for start in range(0, len(table), rows):
            write(table.slice(start, rows))
    footer = pq.read_metadata(target).row_group(group)
    columns = [footer.column(i) for i in range(footer.num_columns)]
    (pictures,) = (column for column in columns if column.path_in_schema == "image.bytes")
    content = target.read_bytes()
    last = pictures.data_page_offset + pictures.total_compressed_size - 1
    target.write_bytes(flip(content, 8 * last))
    return target
