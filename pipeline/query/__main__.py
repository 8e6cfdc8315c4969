"""Ask questions of a manifest in SQL (DuckDB), and save the answer as a manifest to train on.

    lasr query "SELECT role, count(*), avg(distance) FROM patches GROUP BY role"
    lasr query --list
    lasr query --ask sharp-far
    lasr query "SELECT patch_id FROM patches WHERE texture > 0.01" --save mine.parquet

Views: `patches` (one row per patch, as stored), `words` (one row per patch and word), `pairs`
(every far patch with every near patch of its photograph), `images` (one row per photograph found)
and `duplicates` (near-duplicates). The manifest's files can also be named directly:
FROM 'data/patches.parquet/*.parquet'. The SQL can read no other file, and it cannot write.
"""

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from lasr.cli import Command
from lasr.errors import UserError
from lasr.ownership import check_apart, check_file
from pipeline.query.limits import MEMORY_LIMIT, Memory
from pipeline.query.questions import QUESTIONS, listing
from pipeline.query.source import opened
from schemas.address import address_of
from schemas.catalogue import BESIDE, beside

AnswerFormat = Literal["table", "csv", "json", "parquet"]
_BY_SUFFIX: dict[str, AnswerFormat] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


class QueryConfig(BaseModel):
    """The parameters of `lasr query`."""

    sql: str | None = Field(None, description="one SQL statement; the views are named above")
    ask: str | None = Field(None, description="name of a ready question, instead of SQL")
    list: bool = Field(False, description="show the names and titles of the ready questions")
    manifest: Path = Field(
        Path("data/patches.parquet"),
        description="the manifest to query: a path, or s3://bucket/name",
    )
    format: AnswerFormat | None = Field(
        None,
        description="output format; parquet needs --out (default: what the name after --out ends"
        " in, else table)",
    )
    out: Path | None = Field(None, description="write the answer to this file")
    save: Path | None = Field(
        None,
        description="write a manifest of the patches in the answer, for `lasr train --manifest`;"
        " the answer needs the column patch_id",
    )
    overwrite: bool = Field(
        False,
        description="let --out replace any file (default: only Parquet that --out wrote before;"
        " other formats have no place for a mark)",
    )
    timeout: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="give up after this many seconds"
    )
    memory_limit: Memory | None = Field(None, description=MEMORY_LIMIT)
    allow_files: bool = Field(
        False,
        description="let the SQL read and write any file and run any statement (default: it reads"
        " the manifest and the files beside it, and writes nothing)",
    )

    @model_validator(mode="after")
    def _one_question_one_output(self) -> "QueryConfig":
        if (self.sql is not None) + (self.ask is not None) + self.list != 1:
            raise ValueError("give an SQL statement, or --ask NAME, or --list")
        if self.save and self.out:
            raise ValueError("--save writes a manifest and --out an answer: give one of them")
        if self.format == "parquet" and not (self.out or self.save):
            raise ValueError("--format parquet: name the file with --out FILE")
        return self


def format_of(config: QueryConfig) -> AnswerFormat:
    """The format that was asked for, or that the name of the output promises."""
    if config.format is not None:
        return config.format
    suffix = config.out.suffix.lower() if config.out else ""
    return _BY_SUFFIX.get(suffix, "table")


def check_outputs(config: QueryConfig) -> None:
    """Refuse an output that is not ours to replace, or that belongs to the manifest queried."""
    path = config.manifest
    read = [path, *(path.parent / beside(path.name, name) for name in BESIDE)]
    if config.out and config.overwrite and config.out.is_file() and not config.out.is_symlink():
        check_apart(config.out, read)
    elif config.out:
        check_file(config.out, read)
    if config.save:
        if config.save.suffix != ".parquet":
            raise UserError(
                f"--save {config.save}: not a Parquet file", "use a name that ends in .parquet"
            )
        check_file(config.save, read, "--save")
        for name in BESIDE:
            check_file(config.save.parent / beside(config.save.name, name), read, "--save")


def run(config: QueryConfig) -> None:
    """Answer the question of `config`. Raises UserError."""
    if config.list:
        print(listing())
        return
    if config.ask is not None and config.ask not in QUESTIONS:
        raise UserError(
            f"--ask {config.ask}: no ready question has this name",
            f"there are: {', '.join(QUESTIONS)}",
        )
    sql = QUESTIONS[config.ask].sql if config.ask is not None else config.sql or ""
    check_outputs(config)
    with opened(config.manifest) as (manifest, mirror):
        from pipeline.query.answer import ask  # imports DuckDB, once a wrong path was reported

        ask(
            sql, manifest, format_of(config), config.out, config.save, config.allow_files,
            config.overwrite, config.timeout, config.memory_limit, mirror,
        )  # fmt: skip


def following(config: QueryConfig) -> list[object]:
    """The next command: training on what was saved; on a terminal, what to ask or save."""
    if config.save:
        return ["lasr", "train", "--manifest", config.save]
    if config.out or not sys.stdout.isatty():  # the answer is for a file or another program
        return []
    manifest = address_of(config.manifest) or config.manifest
    if config.list:
        return ["lasr", "query", "--ask", next(iter(QUESTIONS)), "--manifest", manifest]
    return ["lasr", "query", "--list", "--manifest", manifest]


main = Command(
    QueryConfig, run, name="lasr query", about=__doc__, positional="sql", following=following
)

if __name__ == "__main__":
    sys.exit(main())
