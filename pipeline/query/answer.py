"""Answer one question about a manifest: print the answer, write it, or save the patches in it."""

import codecs
import difflib
import os
import re
import shutil
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Literal

import duckdb

from lasr.errors import UserError
from lasr.files import atomic_path
from lasr.marks import KEY
from lasr.ownership import is_ours
from lasr.system.calls import unnamed_file
from lasr.terminal.output import say
from lasr.terminal.summary import counted
from pipeline.query.limits import limit, out_of_memory, watched
from pipeline.query.mirror import Mirror
from pipeline.query.sandbox import confine, read_only, readable_files, refusal
from pipeline.query.save import save
from pipeline.query.views import interruptible, with_views
from schemas.manifest import OPTIONAL, Manifest

Form = Literal["table", "csv", "json", "parquet"]
DESCRIPTORS = "/dev/fd"  # where a path leads to an open file
WIDTH = 160  # columns of a table where there is no terminal


def ask(
    sql: str,
    manifest: Manifest,
    form: Form = "table",
    out: Path | None = None,
    save_to: Path | None = None,
    allow_files: bool = False,
    overwrite: bool = False,
    timeout: float | None = None,
    memory_limit: str | None = None,
    mirror: Mirror | None = None,
) -> None:
    """Answer one question. Raises UserError.

    form: how the answer is printed, or written to `out`. save_to: write a manifest of the patches
    in the answer instead. allow_files: run any statement and open any file. overwrite: `out` may
    replace what is not ours. timeout: seconds. memory_limit: see pipeline.query.limits.
    mirror: of a manifest in storage, which is `manifest` then.
    """
    if mirror and save_to:
        raise UserError(
            f"--save: the pixels of {mirror.address} are not fetched from storage",
            "copy the manifest to a local disk",
        )
    with interruptible(), ExitStack() as stack:
        connection = with_views(manifest)
        stack.callback(_close, connection)
        limit(connection, memory_limit, Path(stack.enter_context(TemporaryDirectory())))
        printed = stack.enter_context(_Printed())
        target = printed.path
        if out:
            target = stack.enter_context(atomic_path(out, None if overwrite else is_ours))

        def answer_it(stop: Event) -> None:
            statement = sql
            if not allow_files:
                confine(connection, readable_files(manifest), target)
                statement = read_only(connection, sql)
            if mirror and connection.extract_statements(statement)[0].type.name != "SELECT":
                mirror.fetch(connection, statement, stop)  # it runs at once
            answer = connection.sql(statement)
            if answer is not None and form == "table" and out is None and not save_to:
                answer = _as_shown(answer, _width())
            if mirror and answer is not None:
                mirror.fetch(connection, answer.sql_query(), stop)
            if save_to:
                _save(answer, manifest, sql, save_to, stop)
            elif answer is not None and form == "table" and out is None:
                answer.show(max_width=_width())
            elif answer is not None:
                _write(answer, form, target)
            elif out:
                raise UserError("SQL: this statement has no answer to write", "leave out --out")

        try:
            watched(answer_it, connection, timeout)
        except duckdb.Error as error:
            raise sql_error(error, connection) from error


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.Error):  # still busy, although it was interrupted; the process ends now
        connection.close()


def _save(
    answer: duckdb.DuckDBPyRelation | None,
    manifest: Manifest,
    sql: str,
    target: Path,
    stop: Event,
) -> None:
    if answer is None:
        raise UserError("SQL: this statement has no answer to save", "SELECT the patches")
    roles = save(answer, manifest, sql, target, stop)
    say(f"{target}: {roles['lr']} lr and {counted(roles['hr'], 'hr patch')}")


def _width() -> int:
    """Columns of a table that fits the terminal."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


def _write(answer: duckdb.DuckDBPyRelation, form: Form, target: Path) -> None:
    marked = f"parquet, KV_METADATA {{'{KEY}': '{{}}'}}"
    options = {"table": "csv", "json": "json, ARRAY true", "parquet": marked}.get(form, form)
    path = str(target).replace("'", "''")
    answer.query("answer", f"COPY (FROM answer) TO '{path}' (FORMAT {options}, USE_TMP_FILE false)")


class _Printed:
    """A path; what is written to it is printed at once, so that no answer is too large.

    Not /dev/stdout: DuckDB would truncate a file that `>>` appends to.
    """

    def __enter__(self) -> "_Printed":
        self._error: OSError | None = None
        self._stack = ExitStack()
        self._thread: Thread | None = None
        if not os.path.isdir(DESCRIPTORS):  # noqa: PTH112  (Windows: the answer is copied at the end)
            self.path = self._stack.enter_context(unnamed_file())
            return self
        self._read, self._write = os.pipe()
        self.path = Path(f"{DESCRIPTORS}/{self._write}")
        self._thread = Thread(target=self._copy, name="print", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._thread is None:
            with self._stack:
                if kind is None:
                    self._read = os.open(self.path, os.O_RDONLY)
                    self._copy()
        else:
            os.close(self._write)
            if kind is not KeyboardInterrupt:
                self._thread.join()
        if self._error:
            raise self._error

    def _copy(self) -> None:
        """Bytes as they are, because CSV and JSON are UTF-8; on a terminal, safe text."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while content := os.read(self._read, 1 << 16):
                if sys.stdout is None:
                    continue
                if sys.stdout.isatty():
                    sys.stdout.write(decoder.decode(content))
                else:
                    sys.stdout.flush()
                    sys.stdout.buffer.write(content)
                sys.stdout.flush()
        except OSError as error:  # `| head` has seen enough, or the disk is full
            self._error = error
        finally:
            os.close(self._read)  # DuckDB's next write fails


def _as_shown(answer: duckdb.DuckDBPyRelation, width: int) -> duckdb.DuckDBPyRelation:
    """Cut values that a table cuts anyway: DuckDB holds up to 10,000 rows for one, whole.

    Images become their names, so that their bytes are not read.
    """
    shown = {}
    for name, kind in zip(answer.columns, map(str, answer.types), strict=True):
        column = '"{}"'.format(name.replace('"', '""'))
        if kind == "STRUCT(bytes BLOB, path VARCHAR)":
            shown[column] = f"{column}.path"
        elif kind == "VARCHAR":
            shown[column] = f"left({column}, {width + 1})"
        elif kind == "BLOB" or kind.endswith("[]"):
            shown[column] = f"{column}[1:{width}]"
    if not shown or len(set(answer.columns)) < len(answer.columns):
        return answer
    columns = ", ".join(f"{value} AS {column}" for column, value in shown.items())
    return answer.query("answer", f"SELECT * REPLACE ({columns}) FROM answer")


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
    if isinstance(error, duckdb.OutOfMemoryException):
        return out_of_memory(text)
    if found := _UNKNOWN_COLUMN.search(text):
        name = found["a"] or found["b"] or found["c"]
        known = _columns(connection)
        if name in OPTIONAL and name not in known:
            return UserError(
                f"SQL: no column '{name}': not measured in this manifest, which is older or leaves"
                " it out",
                "build it again",
            )
        return UserError(f"SQL: no column '{name}'", _nearest(name, known))
    if (found := _UNKNOWN_TABLE.search(text)) and found["a"] in _OPTIONAL_VIEWS:
        return UserError(
            f"SQL: the files or columns behind '{found['a']}' are missing", "build it again"
        )
    if found:
        return UserError(f"SQL: no table '{found['a']}'", _nearest(found["a"], _tables(connection)))
    if found := _NO_ACCESS.search(text):
        return UserError(
            f"SQL: '{found['a']}' is not a file of this manifest",
            "`lasr query --allow-files` lets the SQL read and write other files",
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
