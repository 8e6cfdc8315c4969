"""Ask questions of a manifest in SQL (DuckDB), and keep the answer as a manifest to train on.

    python -m pipeline.query "SELECT role, count(*), avg(distance) FROM patches GROUP BY role"
    python -m pipeline.query --list
    python -m pipeline.query --ask sharp-far
    python -m pipeline.query "SELECT patch_id FROM patches WHERE texture > 0.01" --save mine.parquet

Views: `patches` (one row per patch, as stored), `words` (one row per patch and word), `pairs`
(every far patch with every near patch of its photograph), `images` (one row per photograph found)
and `duplicates` (what looks like something else). The manifest's own files can be named, too:
FROM 'data/patches.parquet/*.parquet'. Nothing else is read, and nothing is changed.
"""

import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import duckdb
from pydantic import BaseModel, Field, model_validator

from lasr.cli import Command
from lasr.errors import UserError
from lasr.files import atomic_path
from pipeline.query.errors import one_line
from pipeline.query.questions import QUESTIONS, listing
from pipeline.query.sandbox import check_statement, check_target, confine, files_of
from pipeline.query.save import save
from schemas.manifest import Manifest, open_manifest

WIDTH = 160  # columns of a table where there is no terminal

# Of a photograph, not of one of its patches.
_PHOTOGRAPH = ("image_id", "image_path", "image_width", "image_height", "split")


class QueryConfig(BaseModel):
    """What `pipeline.query` takes."""

    sql: str | None = Field(None, description="one SQL statement; the views are named above")
    ask: str | None = Field(None, description="a ready question by its name, instead of SQL")
    list: bool = Field(False, description="show the ready questions and their names")
    manifest: Path = Field(Path("data/patches.parquet"), description="the manifest to ask")
    format: Literal["table", "csv", "json", "parquet"] = Field(
        "table", description="how to print the answer; parquet needs --out"
    )
    out: Path | None = Field(None, description="write the answer there instead of printing it")
    save: Path | None = Field(
        None,
        description="write a manifest of the patches in the answer, for `trainer.run --manifest`:"
        " rows with a patch_id are enough",
    )
    allow_files: bool = Field(
        False,
        description="let the SQL read and write any file and run any statement (default: it reads"
        " the manifest and what stands beside it, and writes nothing)",
    )

    @model_validator(mode="after")
    def _one_thing(self) -> "QueryConfig":
        if (self.sql is not None) + (self.ask is not None) + self.list != 1:
            raise ValueError("give an SQL statement, or --ask NAME, or --list")
        if self.save and self.out:
            raise ValueError("--save writes a manifest and --out an answer: one at a time")
        if self.format == "parquet" and not (self.out or self.save):
            raise ValueError("--format parquet: say where with --out FILE")
        return self

    @property
    def question(self) -> str:
        """The SQL to run. Raises UserError: no ready question has that name."""
        if self.ask is None:
            return self.sql or ""
        if self.ask not in QUESTIONS:
            raise UserError(f"--ask {self.ask}: the ready questions are {', '.join(QUESTIONS)}")
        return QUESTIONS[self.ask].sql


def connect(manifest: Path) -> duckdb.DuckDBPyConnection:
    """A fresh in-memory database with the views of a manifest.

    `patches`, and as far as columns and files are there `words`, `pairs`, `images`, `duplicates`.
    Raises ManifestError.
    """
    return _with_views(open_manifest(manifest, columns=()))


def _with_views(manifest: Manifest) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    # Made at every connection: a stored view would keep a relative path and break elsewhere.
    connection.read_parquet([str(file) for file in manifest.files]).create_view("patches")
    for file in files_of(manifest)[1:]:
        if file.suffix == ".parquet" and file.is_file():
            connection.read_parquet(str(file)).create_view(file.name.split(".")[-2])
    columns = manifest.schema.names
    if "words" in columns:
        connection.execute(f"CREATE VIEW words AS {_words(columns)}")
    if {"image_id", "role"} <= {*columns}:
        connection.execute(f"CREATE VIEW pairs AS {_pairs(columns)}")
    return connection


def _words(columns: list[str]) -> str:
    """One row per patch and word, best word first: its place, itself, its score; no pixels."""
    lists = ("words", "word_scores")
    kept = [name for name in columns if name not in ("image", "caption", *lists)]
    score = ", unnest(word_scores) AS score" if "word_scores" in columns else ""
    return (
        f"SELECT {', '.join(kept)}, generate_subscripts(words, 1) - 1 AS word_rank,"
        f" unnest(words) AS word{score} FROM patches"
    )


def _pairs(columns: list[str]) -> str:
    """Far and near patches of a photograph: what `trainer.run --pairing photograph` draws from."""
    shared = [f"lr.{name}" for name in _PHOTOGRAPH if name in columns]
    own = [name for name in columns if name not in (*_PHOTOGRAPH, "role", "image")]
    both = [f"{role}.{name} AS {role}_{name}" for name in own for role in ("lr", "hr")]
    return (
        f"SELECT {', '.join(shared + both)} FROM patches AS lr JOIN patches AS hr"
        " ON lr.image_id = hr.image_id AND lr.role = 'lr' AND hr.role = 'hr'"
    )


def query(config: QueryConfig) -> None:
    """Answer one question: print it, write it, or save the patches in it."""
    if config.list:
        print(listing())
        return
    sql, manifest = config.question, open_manifest(config.manifest, columns=())
    if given := config.out or config.save:
        check_target(manifest, given)
    with ExitStack() as stack:
        connection = stack.enter_context(_with_views(manifest))
        spill = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            target = (
                stack.enter_context(atomic_path(config.out)) if config.out else spill / "answer"
            )
            if not config.allow_files:
                confine(connection, files_of(manifest), target, spill)
                check_statement(connection, sql)
            answer = connection.sql(sql)
            if config.save:
                _save(answer, manifest, sql, config.save)
            elif answer is not None:
                _show(answer, config, target)
            elif config.out:
                raise UserError("SQL: this statement has no answer to write; leave out --out")
        except duckdb.Error as error:
            raise UserError(one_line(error, connection)) from error


def _save(
    answer: duckdb.DuckDBPyRelation | None, manifest: Manifest, sql: str, target: Path
) -> None:
    if answer is None:
        raise UserError("SQL: this statement has no answer to save; SELECT the patches")
    roles = save(answer, manifest, sql, target)
    print(f"{target}: {roles['lr']} lr and {roles['hr']} hr patches")
    print(f"train on it: python -m trainer.run --manifest {target}")


def _show(answer: duckdb.DuckDBPyRelation, config: QueryConfig, target: Path) -> None:
    if config.format == "table" and config.out is None:
        _without_pixels(answer).show(max_width=shutil.get_terminal_size((WIDTH, 24)).columns)
        return
    options = {"table": "csv", "json": "json, ARRAY true"}.get(config.format, config.format)
    path = str(target).replace("'", "''")
    answer.query("answer", f"COPY (FROM answer) TO '{path}' (FORMAT {options}, USE_TMP_FILE false)")
    if config.out is None:
        # Not to /dev/stdout: DuckDB would open it anew, and `>> file` would lose what is there.
        print(target.read_text(encoding="utf-8"), end="")


def _without_pixels(answer: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """In a table a picture is shown by its name; its bytes are not even read."""
    pictures = [
        name
        for name, kind in zip(answer.columns, answer.types, strict=True)
        if str(kind) == "STRUCT(bytes BLOB, path VARCHAR)"
    ]
    if not pictures:
        return answer
    names = ", ".join(f'"{name}".path AS "{name}"' for name in pictures)
    return answer.query("answer", f"SELECT * REPLACE ({names}) FROM answer")


main = Command(QueryConfig, query, name="lasr query", about=__doc__, positional="sql")

if __name__ == "__main__":
    sys.exit(main())
