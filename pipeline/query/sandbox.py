"""Limits on SQL: it reads a manifest and the files beside it, and writes nothing.

DuckDB enforces both. Its settings close all other files, the network, extensions and the settings
themselves. They do not distinguish reading a file from overwriting it. Every question therefore
runs inside DuckDB's function query(), which takes a single SELECT and refuses COPY within WITH.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import duckdb

from lasr.errors import UserError
from schemas.catalogue import BESIDE, beside, companion
from schemas.manifest import Manifest

_EXPLAIN = re.compile(
    r"\s*EXPLAIN(?:\s+ANALYZE\b|\s*\(\s*(?:ANALYZE|FORMAT)\b[^)]*\))?", re.IGNORECASE
)
# A table function that runs SQL outside of query(), on a connection of its own.
_EXECUTES = "JSON_EXECUTE_SERIALIZED_SQL"


def readable_files(manifest: Manifest) -> list[Path]:
    """Return all that a question may read: the manifest, then the files beside it."""
    others = [manifest.path.parent / beside(manifest.path.name, name) for name in BESIDE]
    published = [companion(manifest, name) for name in BESIDE]
    return list(dict.fromkeys([manifest.path, *others, *published]))


def confine(
    connection: duckdb.DuckDBPyConnection, readable: Iterable[Path], target: Path | None = None
) -> None:
    """Close everything but the given paths to a connection, irrevocably; so are all its settings.

    readable: files and folders. target: the file to which the answer is written, if to any.
    """
    folders = [f"{path}/" for path in readable if path.is_dir()]
    settings: dict[str, str | bool | list[str]] = {
        "allowed_directories": folders,
        "allowed_paths": [str(path) for path in (*readable, target) if path],
        "python_enable_replacements": False,  # else `FROM x` would read variables of this program
        "enable_external_access": False,
        "lock_configuration": True,
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = {_literal(value)}")


def _literal(value: str | bool | list[str]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value) if isinstance(value, bool) else "'{}'".format(value.replace("'", "''"))


def read_only(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return a statement that asks the same question, but in which nothing can write.

    sql: one SELECT, FROM, VALUES, PIVOT … IN, DESCRIBE, SUMMARIZE or SHOW, or EXPLAIN before one of
    these. Raises UserError if it is another statement or several, and duckdb.Error if DuckDB cannot
    parse or bind it.
    """
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise UserError(f"SQL: {len(statements)} statements", "give one statement at a time")
    kind = statements[0].type.name
    if kind == "EXPLAIN" and (explain := _EXPLAIN.match(sql)):
        return f"{explain[0]} {read_only(connection, sql[explain.end() :])}"
    if kind not in ("SELECT", "MULTI"):  # MULTI: a PIVOT without IN, which query() refuses by name
        raise refusal(kind)
    question = f"FROM query({_literal(sql)})"
    plan = connection.execute(f"EXPLAIN (FORMAT json) {question}").fetchall()
    if _EXECUTES in str(plan).upper():  # in the plan, names hidden in strings are resolved
        raise refusal(_EXECUTES)
    return question


def refusal(kind: str) -> UserError:
    """Return the error for a statement that is not a question."""
    return UserError(
        f"SQL: {kind} is not a question, and only questions are answered",
        "in `lasr query`, --save FILE.parquet writes a manifest, --out FILE an answer, and"
        " --allow-files lifts all limits",
    )
