"""What a question may take: memory, disk for intermediate results, time; and how it is stopped."""

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from lasr.device import machine_memory
from lasr.errors import UserError

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT = (
    "memory that DuckDB may use, as in 500MB or 8GB; more goes to a temporary folder (default: half"
    " of the machine's)"
)


def _memory(text: str) -> str:
    if not re.fullmatch(r"(?i)[1-9]\d{0,5}(\.\d+)? ?[kmgt]i?b", text):
        raise ValueError("give a number and a unit, as in 500MB or 8GB")
    return text


Memory = Annotated[str, AfterValidator(_memory)]
PATIENCE = 2  # seconds for DuckDB to stop
_LOOK = 0.1  # seconds between two looks at the clock: a signal is handled in between


def limit(
    connection: "duckdb.DuckDBPyConnection", memory: str | None = None, spill: Path | None = None
) -> None:
    """Limit the memory of a connection, and the disk that intermediate results may take.

    memory: see MEMORY_LIMIT. spill: the folder for them, which exists only while it is needed.
    """
    spill = spill or Path(tempfile.gettempdir(), f"lasr-query-{os.getpid()}")
    free = shutil.disk_usage(spill if spill.is_dir() else spill.parent).free
    settings = {
        "memory_limit": memory or f"{machine_memory() // 2 // 1_000_000}MB",
        "temp_directory": str(spill).replace("'", "''"),
        "max_temp_directory_size": f"{free // 2 // 1_000_000}MB",
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = '{value}'")
    import duckdb

    # After two seconds it would print into the answer. In Jupyter DuckDB refuses to touch it where
    # ipywidgets is missing, and shows none.
    with suppress(duckdb.InvalidInputException):
        connection.execute("SET enable_progress_bar = false")


def watched(
    work: Callable[[threading.Event], Any],
    connection: "duckdb.DuckDBPyConnection",
    timeout: float | None,
) -> None:
    """Run `work` in a thread of its own, and stop it after `timeout` seconds or on Ctrl-C.

    DuckDB itself looks for Ctrl-C only between its steps, which may take minutes. `work` receives
    the event that is set then, for loops in Python. Raises UserError, KeyboardInterrupt, and what
    `work` raises.
    """
    result, stop = Future[Any](), threading.Event()

    def run() -> None:
        try:
            result.set_result(work(stop))
        except BaseException as error:
            result.set_exception(error)

    def end() -> None:
        stop.set()
        connection.interrupt()
        wait([result], PATIENCE)

    # Not Thread.join: a signal within it leaves a thread that counts as ended.
    threading.Thread(target=run, name="query", daemon=True).start()
    left = timeout if timeout is not None else float("inf")
    try:
        while not result.done() and left > 0:
            wait([result], min(_LOOK, left))
            left -= _LOOK
    except KeyboardInterrupt:
        end()
        raise KeyboardInterrupt from None
    if not result.done():
        end()
        if not result.done() or result.exception() is not None:
            raise UserError(
                f"SQL: no answer after {timeout:g} s", "allow more with --timeout, or ask for less"
            )
    result.result()  # also where it ended at the last moment: what it wrote is there


def out_of_memory(text: str) -> UserError:
    """The error for a question that needs more than the limits. text: DuckDB's message."""
    if "max_temp_directory_size" in text:
        return UserError(
            "SQL: intermediate results exceed half of the free disk of the temporary folder",
            "raise --memory-limit, set TMPDIR to a larger disk, or ask for less",
        )
    return UserError(
        "SQL: the question needs more memory than --memory-limit allows",
        "raise it, or ask for less",
    )
