"""One build of a manifest at a time: a second one fails at once and says who holds the lock.

On a local disk the lock is `filelock` on the file `lock` of the work folder: the kernel releases it
when its holder dies, however it dies. `lock.json` beside it says who the holder is. Object storage
has no locks: there the file `lock` itself says who the holder is, and the `lock` of a build that
died on another machine stays. The error then says how to go on.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout

from lasr.errors import UserError
from pipeline.storage import StoragePath, reported

LOCK = "lock"
HOLDER = "lock.json"


@contextlib.contextmanager
def sole_build(work: StoragePath) -> Iterator[None]:
    """Hold the work folder of a manifest. Raises UserError: another build holds it."""
    content = _holder()
    with _local(work, content) if work.is_local else _in_object_storage(work, content):
        yield


def check_free(work: StoragePath) -> None:
    """Raise UserError if a build holds the work folder; changes nothing."""
    if not work.is_local:
        _check_object_storage(work, b"")
    elif (work / LOCK).exists():
        with _acquired(work):
            pass


@contextlib.contextmanager
def _local(work: StoragePath, content: bytes) -> Iterator[None]:
    with reported(work, "written"):
        work.path.mkdir(parents=True, exist_ok=True)
    with _acquired(work):
        (work / HOLDER).write_bytes(content)
        try:
            yield
        finally:
            (work / HOLDER).remove()


@contextlib.contextmanager
def _acquired(work: StoragePath) -> Iterator[None]:
    lock = FileLock(work.path / LOCK, timeout=0)
    with reported(work, "written"):
        try:
            lock.acquire()
        except Timeout:  # an OSError, which `reported` would take for a fault of the disk
            raise _held(work, _content(work / HOLDER)) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _in_object_storage(work: StoragePath, content: bytes) -> Iterator[None]:
    lock = work / LOCK
    _check_object_storage(work, content)
    lock.write_bytes(content)
    # Two builds may have started at the same moment: the last one to write holds the lock.
    _check_object_storage(work, content)
    try:
        yield
    finally:
        lock.remove()


def _check_object_storage(work: StoragePath, own: bytes) -> None:
    """Raise UserError if the lock names another build that may be alive."""
    lock = work / LOCK
    with reported(lock, "read"):
        content = _content(lock)
    if content and content != own and not _is_dead(content):
        raise _held(work, content, f"; if that build died, remove {lock}")


def _content(path: StoragePath) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _held(work: StoragePath, content: bytes, advice: str = "") -> UserError:
    holder = _parse(content)
    by = "by another build"
    if holder:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        by = f"by process {holder['pid']} on {holder['host']} since {since}"
    return UserError(
        f"{work}: being built {by}", f"wait for it, stop it, or choose another --out{advice}"
    )


def _holder() -> bytes:
    """This process as JSON."""
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    return json.dumps(holder).encode()


def _is_dead(content: bytes) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    holder = _parse(content)
    if holder is None or holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        holder: dict[str, Any] = json.loads(content)
        return holder if {"host", "pid", "since"} <= holder.keys() else None
    except (ValueError, AttributeError):
        return None
