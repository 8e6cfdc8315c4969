"""What a search for pictures found: files, what was passed over, and what could not be reached."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lasr.errors import UserError, printable

NAMED = 5  # files that a message names

# Why files are passed over, besides suffixes such as `.txt`.
HIDDEN = "hidden"
LINKS = "links back to the inputs"
DANGLING = "links that lead nowhere"
SPECIAL = "pipes, sockets or devices"
BY_NAME = (DANGLING, SPECIAL)
NOWHERE = "no such folder, file, glob or list"


@dataclass(frozen=True)
class File:
    """A file that may be a picture.

    base: the folder that results mirror. root: the folder that the user gave; of a glob the part
    before its first wildcard, of a relative path in a list the list's folder.
    """

    path: Path
    base: Path
    root: Path
    is_named: bool = False  # by the user, and not found in a folder


@dataclass
class Passed:
    """Files that are passed over: how many for each reason, and the names of the first few."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: object) -> None:
        self.counts[reason] += 1
        if len(names := self.names.setdefault(reason, [])) < NAMED:
            names.append(printable(str(path)))

    def named(self, reason: str) -> str:
        """The first few names for a reason."""
        more = ", …" if self.counts[reason] > len(self.names[reason]) else ""
        return ", ".join(self.names[reason]) + more

    def __str__(self) -> str:
        """Counts by reason; links that lead nowhere and special files by name."""
        return ", ".join(
            f"{count} {reason}" + (f" ({self.named(reason)})" if reason in BY_NAME else "")
            for reason, count in self.counts.most_common()
        )


@dataclass
class Listing:
    """What a search found: every file is either among `files` or counted in `passed`."""

    files: list[File] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed)
    unreachable: dict[Path, str] = field(default_factory=dict)  # folders, with the reason
    empty: list[Path] = field(default_factory=list)  # folders with nothing visible in them
    dangling: list[Path] = field(default_factory=list)  # links that lead nowhere
    roots: list[Path] = field(default_factory=list)  # folders that the user gave

    def check_complete(self, fix: str = "") -> None:
        """Raise UserError if a folder or file that was asked for cannot be reached."""
        for folder, reason in self.unreachable.items():
            others = len(self.unreachable) - 1
            more = f" (and {others} more)" if others else ""
            raise UserError(f"{folder}: {reason}{more}", fix or "check path and permissions")
