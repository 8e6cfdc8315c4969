"""Errors that a user can act on, as one line, and packages that only some commands need."""

import importlib
from typing import Any

from schemas.errors import UserError

__all__ = ["UserError", "one_line", "require"]


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error of any library on one line, at most `limit` characters of it."""
    text = " ".join(str(error).split())[:limit]
    return text or type(error).__name__


def require(module: str, extra: str) -> Any:
    """Import a package of an optional extra. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs {error.name or module}, which is not installed",
            f"run `pip install 'la-sr[{extra}]'`",
        ) from error
