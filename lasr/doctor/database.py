"""Prefect's SQLite database, without importing Prefect: can it be used, and is it whole?"""

import contextlib
import re
import sqlite3
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from lasr.doctor.checks import version
from lasr.errors import one_line

LOCK_PATIENCE = 2  # seconds for a database that another program writes to
CHECK = 2  # seconds to look for damage in a database: enough for some 500 MB


def fault_of(path: Path) -> str:
    """Why Prefect could not use this SQLite file; "" if it can, or if there is none."""
    if not path.exists():
        return ""
    try:
        address = f"file:{quote(str(path))}?mode=rw"
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=LOCK_PATIENCE)
        ) as database:
            database.execute("BEGIN IMMEDIATE")  # fails on a locked or read-only file
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            revisions: list[tuple[str]] = []
            if "alembic_version" in tables:
                revisions = database.execute("SELECT version_num FROM alembic_version").fetchall()
            database.execute("ROLLBACK")
            damage = _damage(database)
    except sqlite3.Error as error:
        return f"{path}: Prefect's database cannot be used ({one_line(error)})"
    if damage:
        return f"{path}: Prefect's database is damaged ({damage}); move it away for a new one"
    known = known_revisions()
    for (revision,) in revisions:
        if known and revision not in known:
            return f"{path}: Prefect's database is of another version than {version('prefect')}"
    return ""


def _damage(database: sqlite3.Connection) -> str:
    """What SQLite finds wrong within CHECK seconds; "" if nothing.

    A server on a damaged database starts, and then fails at some requests, which Prefect repeats
    for minutes.
    """
    end = time.monotonic() + CHECK
    database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # out of time
        return ""
    finally:
        database.set_progress_handler(None, 0)
    return "" if found == "ok" else one_line(found.splitlines()[-1], 100)


def known_revisions() -> set[str]:
    """The database revisions that the installed Prefect knows; empty if they cannot be found."""
    spec = find_spec("prefect")
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or []]
    found = set()
    for folder in folders:
        for file in folder.glob("server/database/_migrations/versions/sqlite/*.py"):
            with contextlib.suppress(OSError, ValueError):
                found |= set(
                    re.findall(r'^revision\b[^=]*= *"(\w+)"', file.read_text("utf-8"), re.M)
                )
    return found
