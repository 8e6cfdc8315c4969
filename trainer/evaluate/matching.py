"""Which file of a folder belongs to which picture, by name."""

import re
from collections.abc import Iterable
from pathlib import Path

from lasr.errors import UserError

# What programs add to a picture's name: 0801x4.png, Canon_001_LR4.png, baby_SR.png, dog_out.png.
_SUFFIX = re.compile(
    r"([_.-]?x\d+|[_.-](sr|lr|hr|gt|out|output|rlt|result|\d+x)\d*)$", re.IGNORECASE
)


def match(names: Iterable[str], files: list[Path], label: str = "") -> dict[str, Path]:
    """The file for each name of a picture (its stem); names without one are absent.

    The same stem wins; else both must be the same once usual suffixes are taken off, and the label
    of the method as a suffix. Raises UserError: several files fit a name, or one fits two names.
    """
    found: dict[str, Path] = {}
    for name in names:
        fit = [file for file in files if file.stem == name] or [
            file for file in files if _bare(file.stem, label) == _bare(name, label)
        ]
        if len(fit) > 1:
            several = ", ".join(file.name for file in fit[:3])
            raise UserError(f"{fit[0].parent}: {several} all fit {name}; keep one of them")
        if fit and fit[0] in found.values():
            other = next(known for known, file in found.items() if file == fit[0])
            raise UserError(f"{fit[0]}: fits both {other} and {name}; rename it")
        if fit:
            found[name] = fit[0]
    return found


def _bare(stem: str, label: str) -> str:
    bare = stem
    if label:
        bare = re.sub(rf"(?<=.)[_.-]{re.escape(label)}$", "", stem, flags=re.IGNORECASE)
    while (shorter := _SUFFIX.sub("", bare)) not in ("", bare):
        bare = shorter
    return bare
