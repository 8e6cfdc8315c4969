"""One line of the doctor's report."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found there, and what mends it.

    warning: works, but not as well as it could. wrong: something that was asked about will fail.
    """

    level: Level
    about: str
    found: str
    fix: str = ""


def good(about: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", about, found)


def warning(about: str, found: str, fix: str) -> Finding:
    """It works, but not as well as it could."""
    return Finding("warning", about, found, fix)


def wrong(about: str, found: str, fix: str) -> Finding:
    """Something that was asked about will fail."""
    return Finding("wrong", about, found, fix)
