"""Text that users wrote, and atomic writing: a reader sees the old file or the new one."""

import codecs
import contextlib
import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lasr.errors import UserError, no_space, of_machine
from lasr.system.calls import exchange as _exchange
from lasr.system.calls import sync_folder as fsync_folder

__all__ = [
    "NAME_MAX", "IsOurs", "atomic_path", "beside", "foreign", "fsync_folder", "move_aside",
    "read_text", "remove", "replace_file", "replace_folder", "write_bytes",
]  # fmt: skip

NAME_MAX = 255  # bytes of a name, on nearly all file systems
_LARGEST_TEXT = 1 << 28  # bytes: a list of a million long paths
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def read_text(path: Path) -> str:
    """The text of a file that a user wrote, its lines ending in \\n.

    It may be UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one; lines may end
    in CRLF. It may come through a pipe. Raises UserError: another encoding, with the line and the
    byte, or more than a user writes; OSError.
    """
    with open(path, "rb") as file:  # its size says nothing: of a device, it has no end
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise UserError(
            f"{path}: more than {_LARGEST_TEXT >> 20} MiB, which is no text that somebody wrote",
            "check the path",
        )
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    fix = "save it as UTF-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        good = error.object[: error.start].decode(encoding, "replace")
        line, byte = good.count("\n") + 1, error.object[error.start]
        raise UserError(
            f"{path}: line {line}, byte {error.start + 1} of the file (0x{byte:02x}) is not"
            f" {encoding.removesuffix('-sig').upper()}",
            fix,
        ) from error
    if "\0" in text:
        at = text.index("\0")
        line, byte = text.count("\n", 0, at) + 1, len(text[:at].encode()) + 1
        raise UserError(f"{path}: line {line}, byte {byte} of the file (0x00) is not text", fix)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def beside(path: Path, suffix: str) -> Path:
    """A hidden name beside `path` for the time of writing; always the same one for a path."""
    name = f".{path.name}{suffix}"
    if len(os.fsencode(name)) > NAME_MAX:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{suffix}"
    return path.with_name(name)


IsOurs = Callable[[Path], bool]


@contextlib.contextmanager
def atomic_path(path: Path, is_ours: IsOurs | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, otherwise delete it.

    is_ours: whether a file at `path` may be replaced; it is asked at that moment (`replace_file`).

    Order: write, fsync the file, rename, fsync the folder. The temporary name ends in `.tmp`,
    because Parquet readers read every `*.parquet` in a folder, even a hidden one. It is always the
    same, so that a rerun after a kill overwrites the leftover file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, ".tmp")
    if temporary.is_symlink() or temporary.is_dir():  # what a kill leaves is a file
        raise foreign(temporary)
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        if is_ours is None:
            os.replace(temporary, path)
        else:
            replace_file(temporary, path, is_ours)
        fsync_folder(path.parent)
    except OSError as error:
        if no_space(error):
            raise of_machine(OSError(error.errno, error.strerror, str(path))) from error
        if error.errno == errno.EFBIG and not error.filename:  # the user's limit for files
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def replace_file(new: Path, old: Path, is_ours: IsOurs) -> None:
    """Rename the file `new` to `old`, which is nothing or a file of ours, then and not only before.

    Whatever took the name meanwhile is put back. Raises UserError: it is not ours.
    """
    try:
        os.link(new, old)  # unlike a rename, it replaces nothing
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: the name is looked at instead
        if not os.path.lexists(old):
            os.replace(new, old)
            return
    else:
        new.unlink()
        return
    if not is_ours(old):
        raise foreign(old)
    if not _exchange(new, old):
        os.replace(new, old)
        return
    if not is_ours(new):  # it came between the two calls before
        _exchange(new, old)
        raise foreign(old)
    new.unlink()


def move_aside(path: Path, ending: str) -> Path:
    """Rename what is in the way to the first free name, such as NAME.ending; returns that."""
    names = (path.with_name(f"{path.name}.{ending}{n or ''}") for n in itertools.count())
    aside = next(name for name in names if not os.path.lexists(name))
    path.rename(aside)
    return aside


def replace_folder(new: Path, old: Path, is_ours: IsOurs) -> None:
    """Replace `old` (nothing, an empty folder or one of ours) by the folder `new`.

    On Linux and macOS the two names are exchanged in one step, so that a reader always sees one of
    them. Where that is not possible there is a gap of microseconds between two renames.

    is_ours: whether a folder may be deleted; it is asked about the one that was swapped out, which
    otherwise gets its name back. Raises UserError: it is not ours.
    """
    fsync_folder(new)
    if not os.path.lexists(old):
        os.rename(new, old)
    else:
        aside = new
        if not _exchange(new, old):
            aside = beside(old, ".old")
            if os.path.lexists(aside) and is_ours(aside):  # of a process that was killed here
                remove(aside)
            os.rename(old, aside)  # fails if something else has this name
            os.rename(new, old)
        if not is_ours(aside):
            if not _exchange(aside, old):
                os.rename(old, new)
                os.rename(aside, old)
            raise foreign(old)
        remove(aside)
    fsync_folder(old.parent)


def foreign(path: object) -> UserError:
    """The error where a foreign file took a name between check and replacement."""
    return UserError(
        f"{path}: appeared or was changed while this ran, is not ours to replace, and was left as"
        " it is",
        "move it away, or choose another --out",
    )


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
