"""One build of a manifest at a time: the second fails at once and says who holds it."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from lasr.errors import UserError
from pipeline.storage import StoragePath, reported

FILE = "lock"


@contextlib.contextmanager
def sole_build(work: StoragePath) -> Iterator[None]:
    """Hold the work folder of a manifest. Raises UserError where another build does.

    On this machine the kernel lets go of the lock when its holder dies, however it dies. Object
    storage has no such thing: there a build that died on another machine leaves its file `lock`,
    and the error says how to go on.
    """
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    content = json.dumps(holder).encode()
    if work.is_local:
        with reported(work, "written"):
            work.path.mkdir(parents=True, exist_ok=True)
            file = open(work.path / FILE, "a+b")  # noqa: SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise _held(work, file.read()) from None
            file.truncate(0)
            file.write(content)
            file.flush()
            yield
            file.truncate(0)
        return
    lock = work / FILE
    if before := _held_by_another(lock, content):
        raise _held(work, before, _advice(work))
    lock.write_bytes(content)
    # Two that began in the same moment: the last to write stays.
    if before := _held_by_another(lock, content):
        raise _held(work, before)
    try:
        yield
    finally:
        lock.remove()


def _held_by_another(lock: StoragePath, own: bytes) -> bytes | None:
    """What stands in the lock of another build that may be alive."""
    with reported(lock, "read"):
        try:
            content = lock.read_bytes()
        except FileNotFoundError:
            return None
    return None if content == own or _is_dead(content) else content


def check_free(work: StoragePath) -> None:
    """Raise UserError where a build is under way; holds nothing."""
    if work.is_local:
        if work.exists():
            with sole_build(work):
                pass
    elif before := _held_by_another(work / FILE, b""):
        raise _held(work, before, _advice(work))


def _advice(work: StoragePath) -> str:
    return f"; if it died, remove {work / FILE}"


def _held(work: StoragePath, content: bytes, advice: str = "") -> UserError:
    who = _read(content)
    by = "by another build"
    if who:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
        by = f"by process {who['pid']} on {who['host']} since {since}"
    return UserError(
        f"{work}: being built {by}; wait for it, stop it, or choose another --out{advice}"
    )


def _is_dead(content: bytes) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    who = _read(content)
    if who is None or who["host"] != socket.gethostname():
        return False
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _read(content: bytes) -> dict[str, Any] | None:
    try:
        who: dict[str, Any] = json.loads(content)
        return who if {"host", "pid", "since"} <= who.keys() else None
    except (ValueError, AttributeError):
        return None
