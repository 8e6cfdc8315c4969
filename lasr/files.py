"""Atomic writing: a reader, or a machine that loses power, sees the old file or the new one."""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, otherwise delete it.

    Order: write, fsync the file, rename, fsync the folder. The temporary name ends in `.tmp`,
    because Parquet readers read every `*.parquet` in a folder, even a hidden one. It is always the
    same, so that a rerun after a kill overwrites the leftover file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a power failure would otherwise undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, old: Path) -> None:
    """Replace `old` (a folder, a file or nothing) by the folder `new`.

    On Linux the two names are exchanged in one step (renameat2), so that a reader always sees one
    of them. Without that call there is a gap of microseconds between two renames.
    """
    fsync_folder(new)
    if not old.exists():
        os.rename(new, old)
    elif _exchange(new, old):
        remove(new)
    else:
        aside = old.with_name(f".{old.name}.old")
        remove(aside)
        os.rename(old, aside)
        os.rename(new, old)
        remove(aside)
    fsync_folder(old.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _exchange(first: Path, second: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
