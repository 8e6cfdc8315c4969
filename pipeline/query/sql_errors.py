"""Turn DuckDB's errors into one line with the position of the mistake or the nearest names."""

import difflib
import re

import duckdb

from lasr.errors import UserError
from pipeline.query.sandbox import refusal

_UNKNOWN_COLUMN = re.compile(
    r'Referenced column "(?P<a>[^"]+)" not found'
    r'|does not have a column named "(?P<b>[^"]+)"'
    r'|Could not find key "(?P<c>[^"]+)" in struct'
)
_OPTIONAL_VIEWS = ("images", "words", "pairs", "duplicates")
_UNKNOWN_TABLE = re.compile(r"Table with name (?P<a>.+?) does not exist")
_POSITION = re.compile(r"^LINE (?P<line>\d+): (?P<text>.*)\n(?P<space> *)\^", re.MULTILINE)
_NO_ACCESS = re.compile(r'Cannot access (?:file|directory) "(?P<a>[^"]*)"')
_WRITES = re.compile(r"WITH clause containing an? (?P<a>\w+)")
_OPEN_PIVOT = "PIVOT statements without explicit IN clauses"


def sql_error(error: duckdb.Error, connection: duckdb.DuckDBPyConnection) -> UserError:
    """Return the error that the user sees. Nearest names are those of the connection's views."""
    text = str(error)
    if found := _UNKNOWN_COLUMN.search(text):
        name = found["a"] or found["b"] or found["c"]
        return UserError(f"SQL: no column '{name}'", _nearest(name, _columns(connection)))
    if (found := _UNKNOWN_TABLE.search(text)) and found["a"] in _OPTIONAL_VIEWS:
        return UserError(
            f"SQL: the files or columns behind '{found['a']}' are missing", "build it again"
        )
    if found:
        return UserError(f"SQL: no table '{found['a']}'", _nearest(found["a"], _tables(connection)))
    if found := _NO_ACCESS.search(text):
        return UserError(
            f"SQL: '{found['a']}' is not a file of this manifest",
            "--allow-files lets the SQL read and write other files",
        )
    if found := _WRITES.search(text):
        return refusal(f"WITH … {found['a']}")
    if _OPEN_PIVOT in text:
        return UserError(
            "SQL: PIVOT without a list of values", "write it, as in PIVOT … ON role IN ('lr', 'hr')"
        )
    message = text.split("\n\nLINE")[0].split("\nLINE")[0]
    return UserError(f"SQL: {message}{_position(text)}")


def _position(text: str) -> str:
    found = _POSITION.search(text)
    if not found:
        return ""
    column = len(found["space"]) - len(f"LINE {found['line']}: ") + 1
    if found["text"].startswith("..."):  # DuckDB shows a part of a long line
        return f" (line {found['line']}: {found['text']})"
    return f" (line {found['line']}, column {column})"


def _nearest(name: str, known: list[str]) -> str:
    lowered = name.lower().rpartition(".")[2]
    near = difflib.get_close_matches(lowered, known, n=3, cutoff=0.6)
    near = near or [word for word in known if len(lowered) > 2 and lowered in word]
    return f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"


def _columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    sql = "SELECT DISTINCT column_name FROM duckdb_columns() WHERE NOT internal ORDER BY 1"
    return [name for (name,) in connection.execute(sql).fetchall()]


def _tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    sql = "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1"
    return [name for (name,) in connection.execute(sql).fetchall()]
