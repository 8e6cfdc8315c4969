"""Answer one question about a manifest: print the answer, write it, or save the patches in it."""

import difflib
import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import duckdb

from lasr.errors import UserError
from lasr.files import atomic_path
from lasr.marks import KEY
from lasr.ownership import is_ours
from pipeline.query.sandbox import confine, read_only, readable_files, refusal
from pipeline.query.save import save
from pipeline.query.views import with_views
from schemas.manifest import Manifest

Form = Literal["table", "csv", "json", "parquet"]
WIDTH = 160  # columns of a table where there is no terminal


def ask(
    sql: str,
    manifest: Manifest,
    form: Form = "table",
    out: Path | None = None,
    save_to: Path | None = None,
    allow_files: bool = False,
    overwrite: bool = False,
) -> None:
    """Answer one question. Raises UserError.

    form: how the answer is printed, or written to `out`. save_to: write a manifest of the patches
    in the answer instead. allow_files: run any statement and open any file. overwrite: `out` may
    replace what is not ours.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(with_views(manifest))
        spill = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        target = spill / "answer"
        if out:
            target = stack.enter_context(atomic_path(out, None if overwrite else is_ours))
        try:
            statement = sql
            if not allow_files:
                confine(connection, readable_files(manifest), target, spill)
                statement = read_only(connection, sql)
            answer = connection.sql(statement)
            if save_to:
                _save(answer, manifest, sql, save_to)
            elif answer is not None:
                _show(answer, form, out, target)
            elif out:
                raise UserError("SQL: this statement has no answer to write", "leave out --out")
        except duckdb.Error as error:
            raise sql_error(error, connection) from error


def _save(
    answer: duckdb.DuckDBPyRelation | None, manifest: Manifest, sql: str, target: Path
) -> None:
    if answer is None:
        raise UserError("SQL: this statement has no answer to save", "SELECT the patches")
    roles = save(answer, manifest, sql, target)
    print(f"{target}: {roles['lr']} lr and {roles['hr']} hr patches")
    print(f"train on it: lasr train --manifest {target}")


def _show(answer: duckdb.DuckDBPyRelation, form: Form, out: Path | None, target: Path) -> None:
    """Write the answer to `target`, and print it unless it has a file of its own, `out`."""
    if form == "table" and out is None:
        _without_pixels(answer).show(max_width=shutil.get_terminal_size((WIDTH, 24)).columns)
        return
    marked = f"parquet, KV_METADATA {{'{KEY}': '{{}}'}}"
    options = {"table": "csv", "json": "json, ARRAY true", "parquet": marked}.get(form, form)
    path = str(target).replace("'", "''")
    answer.query("answer", f"COPY (FROM answer) TO '{path}' (FORMAT {options}, USE_TMP_FILE false)")
    if out is None:
        # Not to /dev/stdout: DuckDB would truncate a file that `>>` appends to.
        print(target.read_text(encoding="utf-8"), end="")


def _without_pixels(answer: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Replace images by their names, so that a table does not read their bytes."""
    images = [
        name
        for name, kind in zip(answer.columns, answer.types, strict=True)
        if str(kind) == "STRUCT(bytes BLOB, path VARCHAR)"
    ]
    if not images:
        return answer
    names = ", ".join(f'"{name}".path AS "{name}"' for name in images)
    return answer.query("answer", f"SELECT * REPLACE ({names}) FROM answer")


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
