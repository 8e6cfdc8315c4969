"""Errors that a user can act on, and packages that only some commands need."""

import importlib
from typing import Any

from schemas.errors import UserError

__all__ = ["UserError", "load_extra"]


def load_extra(module: str, extra: str) -> Any:
    """Import a package of an optional extra. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs {error.name or module}, which is not installed; run"
            f" `pip install '.[{extra}]'` in the project's folder"
        ) from error
