"""Manifests with rows that cannot be used."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.manifest import open_manifest


def one_table(manifest: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in open_manifest(manifest).files])


def replaced(table: pa.Table, name: str, values: Mapping[int, Any]) -> pa.Table:
    """The table with other values of a column in some rows."""
    column = table[name].to_pylist()
    for row, value in values.items():
        column[row] = value
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(column, field.type))


def with_pictures(manifest: Path, target: Path, pictures: Mapping[int, Any]) -> Path:
    """A manifest of one file with other pictures: bytes, None, or the whole struct."""
    table = one_table(manifest)
    images = {
        row: picture if isinstance(picture, dict) or picture == "null" else {"bytes": picture}
        for row, picture in pictures.items()
    }
    images = {row: None if image == "null" else image for row, image in images.items()}
    pq.write_table(replaced(table, "image", images), target, row_group_size=16)
    return target


def claims(width: int, height: int, rows: int = 1, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header claims a size, with so many rows of zeros in it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    line = bytes(1 + -(-width * depth * {0: 1, 2: 3}[colour] // 8))
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(line) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def bad_pictures(good: bytes, other_role: bytes) -> dict[str, Any]:
    """Pictures that no row may have, by kind. good: a patch. other_role: one of another size."""
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    return {
        "null": None,
        "null struct": "null",
        "no bytes": b"",
        "text": b"no picture",
        "JPEG": b"\xff\xd8\xff\xe0" + bytes(200),
        "cut in the middle": good[: len(good) // 2],
        "cut at the end": good[:-12],
        "header alone": good[:33],
        "cut header": good[:20],
        "flipped bit": bytes(flipped),
        "other size": other_role,
        "huge claim": claims(60_000, 60_000),
        "flat": claims(2_000_000, 1),
        "rows missing": claims(56, 56, rows=20),
    }
