"""What `lasr.pictures.find` searches and returns.

Text lists and globs after `--images` become folders and files. A `Listing` holds the files found,
those passed over, and the folders that could not be listed.
"""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lasr.errors import UserError, printable
from lasr.files import read_text
from lasr.pictures.formats import is_hidden

OnError = Callable[[OSError], object]


@dataclass(frozen=True)
class Input:
    """A folder, file, glob or address, and the folder of the list that named it, if one did."""

    given: str
    list_folder: Path | None = None


def expand_lists(inputs: Iterable[str]) -> Iterator[str]:
    """As `expand`, without the lists' folders."""
    return (one.given for one in expand(inputs))


def expand(inputs: Iterable[str]) -> Iterator[Input]:
    """Replace each `.txt` file among the inputs by its lines; lists may name further lists.

    A relative path in a list is relative to the list's folder, or else to the current folder.
    Raises UserError: a list cannot be read.
    """
    pending, lists = [Input(given) for given in inputs][::-1], set[str]()
    while pending:
        one = pending.pop()
        if not one.given.lower().endswith(".txt") or not os.path.isfile(one.given):
            yield one
        elif os.path.realpath(one.given) not in lists:  # a list that names itself ends here
            lists.add(os.path.realpath(one.given))
            folder = Path(one.given).parent
            lines = (line.strip() for line in _read_lines(one.given))
            pending += [_in_list(line, folder) for line in lines if line][::-1]


def _in_list(line: str, folder: Path) -> Input:
    if "://" in line or Path(line).is_absolute():
        return Input(line)
    fixed, _ = split_glob(str(folder / line))
    beside_list = os.path.lexists(fixed if glob.has_magic(line) else folder / line)
    return Input(str(folder / line), folder) if beside_list else Input(line, Path())


def split_glob(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """Split a glob at its first wildcard: the folder before it, and the components that remain.

    A component that exists as it is written, such as `photos [2024]`, is no wildcard.
    """
    parts = Path(pattern).parts
    for number, part in enumerate(parts):
        if glob.has_magic(part) and not os.path.lexists(Path(*parts[: number + 1])):
            return Path(*parts[:number]), parts[number:]
    return Path(pattern), ()


def match_glob(pattern: str, on_error: OnError) -> list[Path]:
    """The folders and files that a glob matches, sorted; `**` matches folders of any depth.

    Linked folders are matched once. As in a shell, wildcards do not match hidden names.
    on_error: is called for each folder that cannot be listed; `glob.glob` passes over these.
    """
    folder, parts = split_glob(pattern)
    if not parts:
        return []
    found = dict.fromkeys(_match(folder, parts, on_error))
    only_folders = pattern.endswith("/")
    return sorted(path for path in found if not only_folders or is_folder(path))


def _match(folder: Path, parts: tuple[str, ...], on_error: OnError) -> Iterator[Path]:
    if not parts:
        yield folder
    elif parts[0] == "**":
        # A final `**` is the folder itself: it will be searched downwards.
        below = _folders_below(folder, on_error) if parts[1:] else [folder]
        for one in below:
            yield from _match(one, parts[1:], on_error)
    elif glob.has_magic(parts[0]) and not os.path.lexists(folder / parts[0]):
        for entry in entries(folder, on_error):
            hidden = is_hidden(entry.name) and not parts[0].startswith(".")
            if not hidden and fnmatch.fnmatchcase(entry.name, parts[0]):
                path = folder / entry.name
                if not parts[1:] or is_folder(path):
                    yield from _match(path, parts[1:], on_error)
    elif os.path.lexists(folder / parts[0]):
        yield from _match(folder / parts[0], parts[1:], on_error)


def _folders_below(top: Path, on_error: OnError) -> list[Path]:
    """All folders below and including `top`, each once, linked ones last; no hidden ones."""
    found, seen, pending, links = list[Path](), set[object](), [top], list[Path]()
    while pending or links:
        folder = pending.pop() if pending else links.pop(0)
        key = file_id(folder)
        if key in seen:
            continue
        seen.add(key)
        found.append(folder)
        for entry in entries(folder, on_error):
            if not is_hidden(entry.name) and is_folder(folder / entry.name):
                (links if entry.is_symlink() else pending).append(folder / entry.name)
    return found


def entries(folder: Path, on_error: OnError) -> list["os.DirEntry[str]"]:
    """The entries of a folder, sorted by name; on_error is called if it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        error.filename = str(folder)
        on_error(error)
        return []


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder or a link to one; False where that cannot be told."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises PermissionError


def is_link(path: str | Path) -> bool:
    """Whether a path is a link; False where that cannot be told."""
    return os.path.islink(path)  # noqa: PTH114 - as above


def file_id(path: Path) -> object:
    """The same for all paths of one file or folder, whatever links lead to it."""
    try:
        state = path.stat()
    except OSError:
        return os.path.realpath(path)
    # Some network file systems give no numbers.
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)


def _read_lines(path: str) -> list[str]:
    try:
        return read_text(Path(path)).split("\n")
    except OSError as error:
        fix = "check the file"
        raise UserError(f"{path}: this list cannot be read ({error.strerror})", fix) from error


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
