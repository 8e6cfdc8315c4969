"""The lock of a work folder; tests/system/test_kill.py holds it in other processes."""

import json
import os
from pathlib import Path

import pytest

from lasr import lock
from lasr.errors import UserError
from pipeline.build.lock import check_free, sole_build
from pipeline.outputs import check_outputs
from pipeline.storage import StoragePath


def test_the_holder_is_named_while_it_holds(tmp_path: Path) -> None:
    work = StoragePath(str(tmp_path / "a.work"))
    check_free(work)
    assert not work.exists()
    with sole_build(work):
        assert json.loads((work / "lock.json").read_bytes())["pid"] == os.getpid()
        for attempt in (lambda: check_free(work), lambda: sole_build(work).__enter__()):
            with pytest.raises(UserError, match=rf"being built by process {os.getpid()} on \S+ si"):
                attempt()
    check_free(work)
    assert work.names() == ["lock"]
    with pytest.raises(ZeroDivisionError), sole_build(work):
        raise ZeroDivisionError
    check_free(work)


def test_a_work_folder_of_an_older_version_is_taken_over(tmp_path: Path) -> None:
    """It wrote the holder into the lock's own file, and left it empty or, killed, as it was."""
    work = StoragePath(str(tmp_path / "a.work"))
    for content in (b"", b'{"host": "here", "pid": 1, "since": 0}'):
        (work / "lock").write_bytes(content)
        check_outputs(StoragePath(str(tmp_path / "a.parquet")), work, [])
        check_free(work)
        with sole_build(work):
            assert work.names() == ["lock", "lock.json"]
    (work / "lock.json").write_bytes(b'{"host": "her')  # cut short by a power failure
    with sole_build(work):
        check_outputs(StoragePath(str(tmp_path / "a.parquet")), work, [])


def test_a_number_that_another_process_has_by_now_is_no_holder() -> None:
    """As after a machine, or a container, has started again."""
    own = lock.this_process()
    holder = json.loads(own)
    assert not lock.is_dead(own)
    for start, is_dead in (("another boot 17", True), (None, False)):  # None: an older version's
        assert lock.is_dead(json.dumps(holder | {"start": start}).encode()) is is_dead
    elsewhere = holder | {"start": "another boot 17", "host": "another"}
    assert not lock.is_dead(json.dumps(elsewhere).encode())
