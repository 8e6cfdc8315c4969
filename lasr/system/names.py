"""Names of files that a system forbids, or takes for the name of another file.

Outputs get the names of photographs, methods and models. What Linux accepts may be impossible on
Windows, and two names that differ by case alone are one file on Windows and macOS.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from schemas.errors import UserError

_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9¹²³]|LPT[0-9¹²³])(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')


def forbidden(name: str) -> str:
    """Why Windows has no file with this name; "" if it may have one. name: without folders."""
    if found := _FORBIDDEN.search(name):
        return f"Windows allows no {found[0]!r} in names"
    if name not in (".", "..") and name.endswith((" ", ".")):
        return "names on Windows do not end in a space or a full stop"
    if _RESERVED.fullmatch(name):
        return "Windows has a device of this name"
    return ""


def ignores_case(folder: Path) -> bool:
    """Whether two names that differ by case are one in this folder, or the nearest that exists."""
    folder = folder.absolute()
    for each in (folder, *folder.parents):
        other = each.with_name(each.name.swapcase())
        if each.name != other.name and each.exists():
            return other.exists() and each.samefile(other)
    return False


def check_names(paths: Iterable[Path], flag: str = "--out") -> None:
    """Refuse outputs that this system cannot hold, or that would be one file. Raises UserError."""
    seen: dict[str, Path] = {}
    ignoring: dict[Path, bool] = {}  # by folder
    for path in paths:
        if os.name == "nt":
            for part in path.parts[1:] if path.anchor else path.parts:
                if why := forbidden(part):
                    raise UserError(f"{flag} {path}: {why}", "rename it")
        first = seen.setdefault(str(path).casefold(), path)
        if first != path and ignoring.setdefault(path.parent, ignores_case(path.parent)):
            raise UserError(
                f"{flag} {first} and {path}: differ by case alone, and are one file here",
                "rename one of the inputs, or write to a file system that tells them apart",
            )
