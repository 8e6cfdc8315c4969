"""Prefect's database as an embedded server would find it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lasr.doctor import prefect

PAGE = 4096  # bytes, as SQLite has it by default


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with a table of many pages."""
    monkeypatch.setenv(prefect.HOME, str(tmp_path))
    for name in prefect.DATABASE:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "prefect.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE log (number INTEGER PRIMARY KEY, line TEXT)")
        lines = [(number, "a line of a log " * 20) for number in range(2000)]
        connection.executemany("INSERT INTO log VALUES (?, ?)", lines)
    return file


def test_a_whole_database_has_no_fault(database: Path) -> None:
    before = database.read_bytes()
    assert prefect.home_fault() == ""
    assert database.read_bytes() == before


@pytest.mark.parametrize("noise", [bytes(PAGE), b"\xff" * PAGE], ids=["zeros", "noise"])
def test_damage_inside_is_found(database: Path, noise: bytes) -> None:
    """A server on it would start, and fail at some requests only."""
    content = bytearray(database.read_bytes())
    middle = len(content) // PAGE // 2 * PAGE
    content[middle : middle + PAGE] = noise
    database.write_bytes(content)
    fault = prefect.home_fault()
    assert fault.startswith(f"{database}: Prefect's database is damaged (")
    assert "\n" not in fault and fault.endswith("move it away for a new one")


def test_a_database_that_takes_too_long_is_not_called_damaged(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lasr.doctor.database.CHECK", -1)
    with closing(sqlite3.connect(database)) as connection, connection:
        more = "INSERT INTO log SELECT number + 2000, line || line FROM log"
        connection.execute(more)
    assert prefect.home_fault() == ""
