"""Only what is ours is ever replaced: checks of an output, before any work and when it is replaced.

A file is ours if it bears the mark that `lasr.marks` describes, whatever its name. Links are not
followed: a link at the place of a file was made by somebody else.
"""

import contextlib
import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lasr.errors import UserError
from lasr.files import atomic_path
from lasr.marks import has_mark, param_owns
from lasr.system.calls import as_slashes
from lasr.system.names import check_names

_Id = tuple[int, int]  # device and inode


def is_ours(path: Path) -> bool:
    """Whether this project wrote a regular file, by its content."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return has_mark(file)
    except OSError:
        return False


def is_lock(content: bytes) -> bool:
    """Whether this is the content of a lock: none, or its holder, which a power failure cut short.

    Locking a file removes what is in it.
    """
    return not content.strip(b"\0") or content.startswith(b'{"host": ')


def check_file(path: Path, inputs: Iterable[object] = (), flag: str = "--out") -> None:
    """Refuse a file to write whose name is taken by something else, or that touches an input.

    inputs: paths, globs and names as the user gave them; None and what does not exist is passed
    over. Raises UserError; nothing was changed.
    """
    _check_name(path, flag)
    check_names([path], flag)
    _check_parent(path, flag)
    check_apart(path, inputs, flag)
    _check_builds(path, [path.parent], flag)
    if path.is_symlink():
        raise refused(path, "is a link, and what it leads to might not be ours", flag)
    if path.is_dir():
        raise refused(path, "is a folder, and a file is to be written", flag)
    if path.exists() and not is_ours(path):
        raise refused(path, "is a file that LA-SR did not write, or that was edited since", flag)


def check_folder(
    path: Path,
    inputs: Iterable[object] = (),
    files: Iterable[Path] = (),
    flag: str = "--out",
    may_be_inside: bool = False,
    of_build: bool = False,
) -> None:
    """Refuse a folder to add files to that is none, that touches an input, or has foreign `files`.

    The folder may hold other files; a link to a folder is followed. may_be_inside: an input; the
    caller does not search the folder. of_build: it is a manifest, or where its build works. Raises
    UserError.
    """
    _check_name(path, flag)
    _check_parent(path, flag)
    check_apart(path, inputs, flag, may_be_inside)
    if path.is_symlink() and not path.exists():
        raise refused(path, "is a link to nothing", flag)
    if path.exists() and not path.is_dir():
        raise refused(path, "is a file, and a folder is to be written", flag)
    files = list(files)
    folders = [path.parent] if of_build else [path, *{file.parent for file in files}]
    _check_builds(path, folders, flag)
    check_names([path, *files], flag)
    for file in files:
        _check_parent(file, flag)
        if os.path.lexists(file) and not is_ours(file):
            raise refused(file, "was not written by LA-SR, or edited since", flag)


def check_binary(param: Path) -> None:
    """Refuse to replace NCNN's `.bin` beside `param` unless both are ours. Raises UserError."""
    binary = param.with_suffix(".bin")
    if not os.path.lexists(binary):
        return
    is_file = binary.is_file() and not binary.is_symlink()
    if not (is_file and is_ours(param) and param_owns(param.read_bytes(), binary.read_bytes())):
        raise refused(binary, "was not written by LA-SR, or changed since")


def check_apart(
    path: Path, inputs: Iterable[object], flag: str = "--out", may_be_inside: bool = False
) -> None:
    """Refuse an output that is, contains or lies inside an input, whatever links lead there."""
    here, around = _id(path), _around(path)
    above = dict[str, set[_Id]]()  # a list may name 88,000 files of one folder
    for given in inputs:
        if given is None:
            continue
        text = str(given)
        matches = glob.glob(text, recursive=True) if glob.has_magic(text) else []
        for name in [text, *matches]:
            if (there := _id(name)) is None:
                continue
            if there in around and not may_be_inside:
                raise refused(path, f"is inside the input {name}", flag)
            folder = name if os.path.islink(name) else os.path.dirname(name)  # noqa: PTH114, PTH120
            if folder not in above:
                above[folder] = {*_around(Path(folder)), _id(folder or ".") or there}
            if here and (here == there or here in above[folder]):
                raise refused(path, f"is or contains the input {name}", flag)
        if glob.has_magic(text) and not may_be_inside and _matches(path, text):
            raise refused(path, f"would be one of the inputs {text}", flag)


def contains(folder: Path, path: Path) -> bool:
    """Whether a path is, or is inside, a folder."""
    here = _id(folder)
    return here is not None and here in {_id(path), *_around(path)}


@contextlib.contextmanager
def own_path(path: Path) -> Iterator[Path]:
    """`atomic_path`, but it replaces only what is ours, also if `path` appeared meanwhile."""
    with atomic_path(path, is_ours) as temporary:
        yield temporary


def write_own(path: Path, content: bytes) -> None:
    """Write a file with a mark in its content, atomically, over nothing or over one of ours."""
    with own_path(path) as temporary:
        temporary.write_bytes(content)


def refused(path: object, why: str, flag: str = "--out") -> UserError:
    """The answer to an output that is not ours to replace."""
    return UserError(f"{path}: {why}; nothing was changed", f"choose another {flag}")


def check_name(text: str, flag: str = "--out") -> None:
    """Refuse a name that is empty, the current folder, the root, one above, or a bare `~`."""
    text = as_slashes(text)
    if not text.strip("/ ") or text.rstrip("/").rsplit("/", 1)[-1] in ("", ".", ".."):
        raise UserError(
            f"{flag} '{text}': names no file or folder", "give a name such as data/mine"
        )
    if re.match(r"~[^/]*(/|$)", text):
        raise UserError(f"{flag} {text}: the shell did not replace ~", "write the whole path")
    if "\0" in text:
        raise UserError(f"{flag} {text!r}: no such name is possible", "choose another")
    home = os.path.expanduser("~")  # noqa: PTH111 - a user of a container may have none
    if _real(text) in (Path.cwd(), *Path.cwd().parents, _real(home)):
        raise UserError(
            f"{flag} '{text}': is the current folder, one around it, or your home folder",
            "give a name such as data/mine",
        )


def _check_name(path: Path, flag: str) -> None:
    check_name(str(path), flag)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # Path has made one slash of two
        raise UserError(f"{flag} {path}: this is written to local disks only", "give a local path")


def _check_parent(path: Path, flag: str) -> None:
    """Refuse a path below a file, or below a folder that cannot be written."""
    try:
        parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not parent.is_dir():
            raise refused(path, f"{parent} is not a folder", flag)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise refused(path, f"the folder {parent} cannot be written", flag)
    except OSError as error:
        raise refused(path, f"cannot be written ({error.strerror})", flag) from error


def _check_builds(path: Path, folders: Iterable[Path], flag: str) -> None:
    """Refuse to write into, or below, a manifest or the folder beside it in which builds work."""
    from schemas.current import POINTER  # with pyarrow, which `--help` does not wait for

    for folder in {each for below in folders for each in _real(below / "x").parents}:
        manifest = folder.with_suffix(".parquet") if folder.suffix == ".work" else folder
        if (manifest / POINTER).is_file():
            raise refused(path, f"would be in {folder}, where only builds write", flag)


def _id(path: str | Path) -> _Id | None:
    """What a path leads to; None if that does not exist."""
    try:
        state = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


def _around(path: Path) -> set[_Id]:
    """The folders around a path, which need not exist, and around what links lead to."""
    folders = {*path.absolute().parents, *_real(path).parents}
    return {each for folder in folders if (each := _id(folder))}


def _matches(path: Path, pattern: str) -> bool:
    """Whether a glob would match the path, or a folder around it, once it exists."""
    fixed = re.split(r"[*?\[]", pattern)[0]
    base = fixed[: fixed.rfind("/") + 1]  # before the first wildcard, up to a slash
    absolute = f"{os.path.realpath(base)}/{pattern[len(base) :]}"
    return any(
        fnmatch.fnmatchcase(str(place), absolute)
        # `*` of fnmatch matches slashes, that of a glob does not.
        and ("**" in pattern or str(place).count("/") == absolute.count("/"))
        for place in (_real(path), *_real(path).parents)
    )


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))  # `Path.resolve` raises where links lead in a circle
