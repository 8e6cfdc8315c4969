"""Errors that a user can act on, on one line, and packages that only some commands need."""

import contextlib
import errno
import importlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.errors import UserError

__all__ = [
    "UserError", "is_out_of_memory", "no_space", "note_traceback", "of_machine", "one_line",
    "printable", "require", "space_on_disk", "writing", "written_out",
]  # fmt: skip

# What allocators say: the CPU's of PyTorch, ONNX Runtime, OpenCV.
_NO_MEMORY = (
    "can't allocate memory", "not enough memory", "out of memory", "failed to allocate",
    "insufficient memory", "can't start new thread",
)  # fmt: skip

_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_noted: set[type[BaseException]] = set()


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error of any library on one line, at most `limit` characters of it."""
    text = printable(str(error))[:limit]
    return text or type(error).__name__


def printable(text: str) -> str:
    """Text on one line: white space becomes a space, other control characters are escaped."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else written_out(c) for c in line)


def written_out(character: str) -> str:
    """A control character as an escape, such as \\x1b."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode keeps a byte that is not UTF-8 like this
        code -= 0xDC00
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def no_space(error: BaseException) -> bool:
    """Whether a disk, or the user's part of it, is full."""
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        getattr(errno, "EDQUOT", None),
    )


def of_machine(error: OSError, path: str | Path | None = None) -> UserError:
    """An error of the file system as a user reads it: which file, and what is wrong with it.

    path: what was written, where the error does not say.
    """
    if error.errno == errno.ENOENT and not (error.filename or path):
        return UserError("the current folder no longer exists", "change to another folder")
    where = str(error.filename or path or "standard output")
    problem = f"{where}: {error.strerror or one_line(error)}"
    if not no_space(error):
        return UserError(problem)
    fix = "free some space and run the same command again; what is finished is kept"
    return _not_written(Path(where), error, fix)


def note_traceback(logger: logging.Logger, error: BaseException) -> None:
    """Log the traceback of an unexpected exception at debug level, the first of each type.

    Call it where one failure does not end the run, such as that of a single photograph: ten
    thousand failures of one kind then leave one traceback. A UserError explains itself and is
    not logged. Flag `--debug` shows the log.
    """
    if isinstance(error, UserError) or type(error) in _noted:
        return
    _noted.add(type(error))
    logger.debug("the first %s:", type(error).__name__, exc_info=error)


def require(module: str, extra: str) -> Any:
    """Import a package of an optional extra. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs {error.name or module}, which is not installed",
            f"run `pip install 'la-sr[{extra}]'`",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or a CPU, as any of the libraries says it."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    is_enomem = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return is_enomem or any(words in str(error).lower() for words in _NO_MEMORY)


def space_on_disk(path: Path, needed: int | None = None) -> str:
    """The free bytes where `path` would be written, and the needed ones if they are known."""
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    free = f"{in_bytes(shutil.disk_usage(folder).free)} free"
    return free if needed is None else f"{free}, {in_bytes(needed)} needed"


def in_bytes(count: float) -> str:
    """A number of bytes in words: 3 bytes, 1.5 kB, 16.8 GB (of 10^9 bytes)."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextlib.contextmanager
def writing(path: Path, fix: str, needed: int | None = None) -> Iterator[None]:
    """Turn an error of the disk, such as that it is full, into a UserError that names `path`.

    needed: bytes that are to be written. fix: what to do about it.
    """
    try:
        yield
    except OSError as error:
        raise _not_written(path, error, fix, needed) from error


def _not_written(path: Path, error: OSError, fix: str, needed: int | None = None) -> UserError:
    # Not `strerror`: pyarrow puts its own words there.
    why = os.strerror(error.errno) if error.errno else one_line(error, 100)
    return UserError(f"{path}: cannot be written ({why}; {space_on_disk(path, needed)})", fix)
