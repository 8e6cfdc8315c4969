"""Answer one question as rows of plain values, with the patches that it names; for `lasr ui`."""

import math
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import duckdb
import numpy as np

from lasr.errors import UserError
from pipeline.query.answer import sql_error
from pipeline.query.limits import limit, watched
from pipeline.query.pixels import rows_of_patches
from pipeline.query.sandbox import confine, read_only, readable_files
from pipeline.query.views import with_views
from schemas.manifest import PATCH_SIZE, Manifest, Role

CELL = 300  # characters of a value
WORDS = 6  # of a patch
_NUMBERS = ("INT", "FLOAT", "DOUBLE", "DECIMAL")  # in names of types
_IDS = ("patch_id", "id", "kept")  # columns that name patches
_EXACT = 2**53  # integers that JSON's readers keep

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Patch:
    """A patch that is named in an answer. png: its pixels, as stored."""

    patch_id: str
    role: Role
    photograph: str
    words: list[str]
    png: bytes | None

    @property
    def side(self) -> int:
        """Pixels of its side."""
        return PATCH_SIZE[self.role]


@dataclass(frozen=True)
class Rows:
    """The first rows of an answer. numbers: whether a column holds numbers."""

    columns: list[str] = field(default_factory=list)
    numbers: list[bool] = field(default_factory=list)
    rows: list[list[Value]] = field(default_factory=list)
    more: bool = False  # there are more rows
    patches: list[Patch] = field(default_factory=list)


def answer_rows(
    sql: str,
    manifest: Manifest,
    most: int,
    pictures: int,
    timeout: float | None = None,
    memory_limit: str | None = None,
) -> Rows:
    """Answer one question with the limits of `lasr query`. Raises UserError.

    most: rows. pictures: patches. timeout: seconds. memory_limit: see pipeline.query.limits.
    """
    found: list[Rows] = []
    with TemporaryDirectory() as spill:
        connection = with_views(manifest)
        try:
            limit(connection, memory_limit, Path(spill))
            confine(connection, readable_files(manifest))

            def work(stop: Event) -> None:
                statement = read_only(connection, sql)
                found.append(
                    _rows(connection, manifest, connection.sql(statement), most, pictures, stop)
                )

            watched(work, connection, timeout)
        except duckdb.Error as error:
            raise sql_error(error, connection) from error
        finally:
            with suppress(duckdb.Error):  # still busy, although it was interrupted
                connection.close()
    return found[0]


def _rows(
    connection: duckdb.DuckDBPyConnection,
    manifest: Manifest,
    answer: duckdb.DuckDBPyRelation | None,
    most: int,
    pictures: int,
    stop: Event,
) -> Rows:
    if answer is None:
        raise UserError("SQL: this statement has no answer", "SELECT something")
    columns = list(answer.columns)  # query() gives each a name of its own
    kinds = list(map(str, answer.types))
    numbers = [any(word in kind for word in _NUMBERS) and kind[-1] != "]" for kind in kinds]
    numbers = [is_number and "(" not in kind.replace("DECIMAL(", "")
               for is_number, kind in zip(numbers, kinds, strict=True)]  # fmt: skip
    shown = ", ".join(map(_shown, columns, kinds, numbers))
    cut = answer.query("answer", f"SELECT {shown} FROM (FROM answer LIMIT {most + 1}) AS answer")
    rows = cut.fetchall()
    if stop.is_set():
        raise duckdb.InterruptException
    names = [name for name in _IDS if name in columns]
    ids = [row[columns.index(name)] for row in rows[:most] for name in names]
    ids = [text for text in dict.fromkeys(ids) if isinstance(text, str)][:pictures]
    return Rows(
        columns,
        numbers,
        [[*map(_plain, row, kinds)] for row in rows[:most]],
        len(rows) > most,
        _patches(connection, manifest, ids) if ids else [],
    )


def _shown(name: str, kind: str, is_number: bool) -> str:
    """A column as it is sent: numbers as they are, the beginning of all else, no pixels."""
    column = '"{}"'.format(name.replace('"', '""'))
    if is_number or kind == "BOOLEAN":
        return column
    value = column
    if kind == "STRUCT(bytes BLOB, path VARCHAR)":
        value = f"{column}.path"
    elif kind == "BLOB" or kind.endswith("[]"):
        value = f"{column}[1:{CELL}]"
    return f"left(CAST({value} AS VARCHAR), {CELL}) AS {column}"


def _plain(value: Any, kind: str) -> Value:
    """A value that JSON holds; of a 32-bit number the digits that it has."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, float) and kind == "FLOAT":
        return float(str(np.float32(value)))
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _patches(
    connection: duckdb.DuckDBPyConnection, manifest: Manifest, ids: list[str]
) -> list[Patch]:
    """The patches of these ids, in this order; ids that are not patches are passed over."""
    if not {"patch_id", "role", "image"} <= {*manifest.schema.names}:
        return []
    columns = ("patch_id", "role", "image_path", "words", "image")
    patches = {}
    for row in rows_of_patches(connection, manifest, ids, columns).to_pylist():
        if row["role"] in PATCH_SIZE:
            path, words = row.get("image_path", ""), (row.get("words") or [])[:WORDS]
            png = (row["image"] or {}).get("bytes")
            patches[row["patch_id"]] = Patch(row["patch_id"], row["role"], path, words, png)
    return [patches[name] for name in ids if name in patches]
