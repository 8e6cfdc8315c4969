"""One writer of a folder at a time: a second one fails at once and says who holds the lock.

The lock is `filelock` on the file `lock` of the folder: the kernel releases it when its holder
dies, however it dies. `lock.json` beside it says who the holder is. Builds lock their work folder,
training runs and evaluations their own.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lasr.errors import UserError
from lasr.ownership import is_lock, refused
from lasr.system.calls import is_alive, process_start

LOCK, HOLDER = "lock", "lock.json"


@contextlib.contextmanager
def sole_writer(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of `folder`, which is created if it is missing.

    doing: what the holder does, for the message, such as "being built". Raises UserError: another
    process holds it, or a file of its name is not a lock. Raises OSError: the folder cannot be
    written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LOCK, HOLDER):  # locking a file removes what is in it
        if os.path.lexists(folder / name) and not _is_ours(folder / name):
            raise refused(folder / name, "was not written by LA-SR")
    with _acquired(folder, doing):
        (folder / HOLDER).write_bytes(this_process())
        try:
            yield
        finally:
            (folder / HOLDER).unlink(missing_ok=True)


def check_free(folder: Path, doing: str) -> None:
    """Raise UserError if a process holds the lock of `folder`; changes nothing."""
    if (folder / LOCK).exists():
        with _acquired(folder, doing):
            pass


def _is_ours(path: Path) -> bool:
    """Whether a file is a lock, or its holder. Both are short."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return is_lock(file.read(4096))


@contextlib.contextmanager
def _acquired(folder: Path, doing: str) -> Iterator[None]:
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:  # an OSError, which callers would take for a fault of the disk
        try:
            holder = (folder / HOLDER).read_bytes()
        except OSError:
            holder = b""
        raise held(str(folder), doing, holder) from None
    try:
        yield
    finally:
        lock.release()


def held(folder: str, doing: str, holder: bytes, advice: str = "") -> UserError:
    """The error of a second writer. holder: as `this_process` wrote it, or anything else."""
    by = "by another process"
    if known := parse(holder):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(known["since"]))
        by = f"by process {known['pid']} on {known['host']} since {since}"
    return UserError(
        f"{folder}: {doing} {by}", f"wait for it, stop it, or choose another --out{advice}"
    )


def this_process() -> bytes:
    """This process as JSON."""
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    return json.dumps(holder | {"start": process_start(os.getpid())}).encode()


def is_dead(content: bytes) -> bool:
    """Whether the holder was a process of this machine that has ended.

    A machine or a container that starts again gives the same numbers to other processes.
    """
    holder = parse(content)
    if holder is None or holder["host"] != socket.gethostname():
        return False
    start = holder.get("start")
    return not is_alive(holder["pid"]) or (
        start is not None and process_start(holder["pid"]) not in (start, None)
    )


def parse(content: bytes) -> dict[str, Any] | None:
    """The holder that `this_process` wrote; None: something else."""
    try:
        holder = json.loads(content)
        kinds = (("host", str), ("pid", int), ("since", (int, float)))
        known = all(isinstance(holder[name], kind) for name, kind in kinds)  # type: ignore[arg-type]
        return holder if known else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
