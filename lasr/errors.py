"""Errors that a user can act on, on one line, and packages that only some commands need."""

import importlib
import logging
from typing import Any

from schemas.errors import UserError

__all__ = ["UserError", "note_traceback", "one_line", "printable", "require"]

_noted: set[type[BaseException]] = set()


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error of any library on one line, at most `limit` characters of it."""
    text = printable(str(error))[:limit]
    return text or type(error).__name__


def printable(text: str) -> str:
    """Text on one line: white space becomes a space, other control characters are escaped."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


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
