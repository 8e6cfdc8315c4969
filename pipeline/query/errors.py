"""What DuckDB says of a wrong query, as one line that helps: the place, or the nearest names."""

import difflib
import re

import duckdb

_UNKNOWN_COLUMN = re.compile(
    r'Referenced column "(?P<a>[^"]+)" not found'
    r'|does not have a column named "(?P<b>[^"]+)"'
    r'|Could not find key "(?P<c>[^"]+)" in struct'
)
_VIEWS = ("images", "words", "pairs", "duplicates")  # that a manifest may lack
_UNKNOWN_TABLE = re.compile(r"Table with name (?P<a>.+?) does not exist")
_PLACE = re.compile(r"^LINE (?P<line>\d+): (?P<text>.*)\n(?P<space> *)\^", re.MULTILINE)
_NO_ACCESS = re.compile(r'Cannot access (?:file|directory) "(?P<a>[^"]*)"')


def one_line(error: duckdb.Error, connection: duckdb.DuckDBPyConnection) -> str:
    """The error in one line; names are sought among the views of the connection."""
    text = str(error)
    if found := _UNKNOWN_COLUMN.search(text):
        name = found["a"] or found["b"] or found["c"]
        return f"SQL: no column '{name}'; {_nearest(name, _columns(connection))}"
    if (found := _UNKNOWN_TABLE.search(text)) and found["a"] in _VIEWS:
        return f"SQL: this manifest lacks what '{found['a']}' is made of; build it again"
    if found:
        return f"SQL: no table '{found['a']}'; {_nearest(found['a'], _tables(connection))}"
    if found := _NO_ACCESS.search(text):
        return (
            f"SQL: '{found['a']}' is no file of the manifest and stays closed; --allow-files lets"
            " the SQL read and write other files"
        )
    message = text.split("\n\nLINE")[0].split("\nLINE")[0]
    return f"SQL: {message}{_place(text)}"


def _place(text: str) -> str:
    found = _PLACE.search(text)
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
