"""Find the picture files that a command's inputs name. No picture is opened.

An input is a folder, a file, a glob, or a `.txt` list with one input per line.
"""

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from lasr.errors import UserError

# fmt: off
FORMATS = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif",
    ".ppm", ".pgm", ".pnm",
])
# fmt: on

_Id = tuple[int, int]  # device and inode


def find_pictures(inputs: Iterable[str | Path], exclude: Path | None = None) -> dict[Path, Path]:
    """Map the absolute path of each picture file to its name, as `find_files` yields them.

    Raises UserError: as `find_files`, or no picture found.
    """
    named = [str(given) for given in inputs]
    found: dict[Path, Path] = {}
    for path, name in find_files(named, exclude):
        found.setdefault(Path(os.path.abspath(path)), name)
    if not found:
        raise UserError(
            f"no picture in {', '.join(named)}",
            f"give a file, or a folder with files that end in {' '.join(sorted(FORMATS))}",
        )
    return found


def find_files(inputs: Iterable[str], exclude: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each picture file, and its name relative to the folder the user gave.

    Folders are searched recursively for files with a suffix of FORMATS. Hidden files and folders
    are skipped. A file that the user names, directly, in a list or by a glob, is taken whatever
    its suffix; its name is its file name. A glob may match folders, too.

    No folder is searched twice, whatever links lead to it. Linked folders come last, so that a
    folder that is also reached without a link keeps its own path. A link to a folder around an
    input is a loop and is not followed.

    Named pipes, devices and dangling links are yielded: `check_regular` tells them from files.
    Inputs that overlap may yield a file twice.

    Args:
        exclude: a folder of results; it is not searched.

    Raises UserError: an input does not exist, `exclude` is an input, or a folder or list cannot
    be read.
    """
    search = _Search(exclude)
    for given in expand_lists(inputs):
        yield from search.input(given)
    yield from search.linked_folders()


def expand_lists(inputs: Iterable[str]) -> Iterator[str]:
    """Replace each `.txt` file among the inputs by its lines; lists may name further lists.

    Relative paths in a list are relative to the current folder, as in a shell script.
    Raises UserError: a list cannot be read.
    """
    pending, lists = list(inputs)[::-1], set[str]()
    while pending:
        given = pending.pop()
        if not given.lower().endswith(".txt") or not os.path.isfile(given):
            yield given
        elif os.path.realpath(given) not in lists:  # a list that names itself ends here
            lists.add(os.path.realpath(given))
            pending += [line.strip() for line in _read_lines(given) if line.strip()][::-1]


def is_picture_name(name: str) -> bool:
    """Whether a file with this name is picked up when its folder is searched."""
    return Path(name).suffix.lower() in FORMATS and not name.startswith(".")


def check_regular(path: Path) -> None:
    """Raise UserError if `path` is a named pipe, a socket or a device: reading it may block.

    A path that does not exist passes; opening it reports the error.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a regular file", "leave it out of the inputs")


class _Search:
    """The folders searched so far, and the links to folders still to follow."""

    def __init__(self, exclude: Path | None) -> None:
        self._excluded = {_id(exclude)} if exclude and exclude.exists() else set[_Id]()
        self._seen = set(self._excluded)
        self._around = set[_Id]()  # folders that contain an input
        self._links: list[tuple[Path, Path]] = []  # each with the folder that the user gave

    def input(self, given: str) -> Iterator[tuple[Path, Path]]:
        if _is_folder(given):
            if _id(Path(given)) in self._excluded:
                raise UserError(f"{given} holds the inputs", "choose another folder for results")
            yield from self._folder(Path(given))
        elif os.path.lexists(given):
            yield Path(given), Path(Path(given).name)
        elif matches := sorted(glob.glob(given, recursive=True)):
            folders = [match for match in matches if _is_folder(match)]
            # Files first: `**` matches files and the folders around them; names stay short.
            files = [Path(match) for match in matches if not _is_folder(match)]
            yield from ((path, Path(path.name)) for path in files)
            for match in folders:
                if _is_link(match):
                    self._links.append((Path(match), Path(match)))
                else:
                    yield from self._folder(Path(match))
        else:
            raise UserError(f"{given}: no such folder, file, glob or list", "check the path")

    def linked_folders(self) -> Iterator[tuple[Path, Path]]:
        while self._links:
            link, base = self._links.pop(0)
            if _id(link) not in self._around:
                yield from self._walk(link, base)

    def _folder(self, folder: Path) -> Iterator[tuple[Path, Path]]:
        self._around |= {_id(parent) for parent in folder.resolve().parents}
        yield from self._walk(folder, folder)

    def _walk(self, top: Path, base: Path) -> Iterator[tuple[Path, Path]]:
        # os.walk skips a folder that it cannot list unless `onerror` is given.
        for parent, folders, files in os.walk(top, onerror=_cannot_list):
            folder, key = Path(parent), _id(Path(parent))
            if key in self._seen:
                folders.clear()
                continue
            self._seen.add(key)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [folder / name for name in folders]
            self._links += [(path, base) for path in paths if _is_link(path)]
            relative = folder.relative_to(base)
            for name in sorted(files):
                if is_picture_name(name):
                    yield folder / name, relative / name


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises PermissionError


def _is_link(path: str | Path) -> bool:
    return os.path.islink(path)  # noqa: PTH114 - as above


def _id(folder: Path) -> _Id:
    try:
        state = folder.stat()
    except OSError as error:
        _cannot_list(error)
    return state.st_dev, state.st_ino


def _cannot_list(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename}: this folder cannot be listed ({error.strerror})",
        "make it readable, or give the folders beside it one by one",
    ) from error


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{path}: this list cannot be read ({reason})", "check the file") from error
