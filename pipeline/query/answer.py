"""Answer one question about a manifest: print the answer, write it, or save the patches in it."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import duckdb

from lasr.errors import UserError
from lasr.files import atomic_path
from pipeline.query.sandbox import check_target, confine, read_only, readable_files
from pipeline.query.save import save
from pipeline.query.sql_errors import sql_error
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
) -> None:
    """Answer one question. Raises UserError.

    form: how the answer is printed, or written to `out`. save_to: write a manifest of the patches
    in the answer instead. allow_files: run any statement and open any file.
    """
    if output := out or save_to:
        check_target(manifest, output)
    with ExitStack() as stack:
        connection = stack.enter_context(with_views(manifest))
        spill = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        target = stack.enter_context(atomic_path(out)) if out else spill / "answer"
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
    options = {"table": "csv", "json": "json, ARRAY true"}.get(form, form)
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
