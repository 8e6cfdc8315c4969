"""SQL that can read a manifest and nothing else, and write nothing.

DuckDB itself refuses files, folders, addresses, extensions and settings outside of what is allowed;
the kinds of statements are looked at besides, because what it may read it would also overwrite.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import duckdb

from lasr.errors import UserError
from schemas.catalogue import BESIDE, beside
from schemas.manifest import Manifest

# MULTI is PIVOT. DESCRIBE, SUMMARIZE, SHOW and VALUES count as SELECT.
_QUESTIONS = {"SELECT", "MULTI"}
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(\([^)]*\)|ANALYZE\b)?", re.IGNORECASE)


def files_of(manifest: Manifest) -> list[Path]:
    """The manifest and what stands beside it: all that questions may read."""
    others = [manifest.path.with_name(beside(manifest.path.name, name)) for name in BESIDE]
    return [manifest.path, *others]


def check_target(manifest: Manifest, target: Path) -> None:
    """Refuse to write over what is asked. Raises UserError."""
    for path in files_of(manifest):
        if path.resolve() in (target.resolve(), *target.resolve().parents):
            raise UserError(f"{target}: belongs to the manifest asked; choose another name")


def confine(
    connection: duckdb.DuckDBPyConnection, readable: Iterable[Path], target: Path, spill: Path
) -> None:
    """Take from a connection, for good, all access but to these places.

    readable: files and folders. target: the file that our own COPY writes. spill: a folder for what
    does not fit into memory. Views may be made before or after.
    """
    folders = [f"{path}/" for path in readable if path.is_dir()]
    settings: dict[str, str | bool | list[str]] = {
        "allowed_directories": folders,
        "allowed_paths": [str(path) for path in (*readable, target)],
        "temp_directory": str(spill),
        "python_enable_replacements": False,  # else `FROM x` would find variables of this program
        "enable_external_access": False,
        "lock_configuration": True,
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = {_literal(value)}")


def _literal(value: str | bool | list[str]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value) if isinstance(value, bool) else "'{}'".format(value.replace("'", "''"))


def check_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Refuse what is not one question: SELECT, FROM, PIVOT, DESCRIBE, EXPLAIN of these.

    The connection is confined already: to bind a statement is to look at the files that it names.
    Raises UserError, and duckdb.ParserException where it is no SQL.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise UserError(f"SQL: one statement at a time; these are {len(statements)}")
    kind = statements[0].type.name
    if kind == "EXPLAIN" and (explained := _EXPLAIN.match(sql)):
        check_statement(connection, sql[explained.end() :])  # EXPLAIN ANALYZE executes
    elif kind not in _QUESTIONS or _writes(connection, sql):
        raise UserError(
            f"SQL: {kind if kind not in _QUESTIONS else 'WITH … COPY'} is no question, and only"
            " these are answered: --save FILE.parquet writes a curated manifest, --out FILE an"
            " answer, and --allow-files lifts all limits"
        )


def _writes(connection: duckdb.DuckDBPyConnection, sql: str) -> bool:
    """Whether a SELECT hides a COPY or an INSERT in its WITH, which DuckDB 2 executes.

    DuckDB binds such a thing at the top level only, so it is asked to bind the SELECT below it.
    """

    def binds(statement: str) -> bool:
        try:
            connection.execute(f"EXPLAIN {statement}")
        except duckdb.Error:
            return False
        return True

    # query() takes semicolons and comments, brackets take PIVOT and DESCRIBE. What does not bind at
    # all is a mistake of another kind, which running it will name.
    below = (f"FROM query({_literal(sql)})", f"FROM (\n{sql.rstrip('; ')}\n)")
    return not any(map(binds, below)) and binds(sql)
