"""Ask questions of a manifest in SQL (DuckDB).

    python -m pipeline.query "SELECT role, count(*), avg(distance) FROM patches GROUP BY role"

The views `patches` and `images` stand for the manifest and its catalogue; any file can be named
too: FROM 'data/patches.parquet/*.parquet'.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

import duckdb
from pydantic import BaseModel, Field

from schemas.commandline import parse, run_command
from schemas.errors import UserError
from schemas.files import atomic_path
from schemas.manifest import images_path, open_manifest


class QueryConfig(BaseModel):
    """What `pipeline.query` takes."""

    sql: str = Field(description="one SQL statement; the views are patches and images")
    manifest: Path = Field(Path("data/patches.parquet"), description="the manifest to ask")
    format: Literal["table", "csv", "json", "parquet"] = Field(
        "table", description="how to print the answer; parquet needs --out"
    )
    out: Path | None = Field(None, description="write the answer there instead of printing it")


def connect(manifest: Path) -> duckdb.DuckDBPyConnection:
    """A fresh in-memory database with the views `patches` and `images`. Raises ManifestError."""
    connection = duckdb.connect()
    files = [str(file) for file in open_manifest(manifest, columns=()).files]
    # Made at every connection: a stored view would keep a relative path and break elsewhere.
    connection.read_parquet(files).create_view("patches")
    catalogue = images_path(manifest)
    if catalogue.is_file():
        connection.read_parquet(str(catalogue)).create_view("images")
    return connection


def query(config: QueryConfig) -> None:
    """Run one statement and print its answer."""
    if config.format == "parquet" and config.out is None:
        raise UserError("--format parquet: say where with --out FILE")
    connection = connect(config.manifest)
    try:
        answer = connection.sql(config.sql)
        if answer is None:  # COPY, CREATE …: done, with nothing to show
            return
        if config.out is None and config.format == "table":
            answer.show(max_width=shutil.get_terminal_size((160, 24)).columns)
        elif config.out is None:
            # Not to /dev/stdout: DuckDB would open it anew, and `>> file` would lose what is there.
            with tempfile.TemporaryDirectory() as folder:
                _write(answer, Path(folder, "answer"), config.format)
                print(Path(folder, "answer").read_text(encoding="utf-8"), end="")
        else:
            with atomic_path(config.out) as temporary:
                _write(answer, temporary, config.format)
    except duckdb.Error as error:
        raise UserError(f"SQL: {_one_line(error)}") from error


def _write(answer: duckdb.DuckDBPyRelation, path: Path, form: str) -> None:
    target = str(path).replace("'", "''")
    options = {"table": "csv", "json": "json, ARRAY true"}.get(form, form)
    answer.query("answer", f"COPY (FROM answer) TO '{target}' (FORMAT {options})")


def _one_line(error: duckdb.Error) -> str:
    text = str(error).split("\n\nLINE")[0].split("\nLINE")[0]
    return re.sub(r"\s+", " ", text)


def main(argv: list[str] | None = None) -> int:
    """The command `python -m pipeline.query`."""
    config = parse(QueryConfig, argv, "python -m pipeline.query", __doc__ or "", positional="sql")
    return run_command(lambda: query(config))


if __name__ == "__main__":
    sys.exit(main())
