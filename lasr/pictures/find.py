"""Which pictures a command is asked for, and the name that each one's result takes."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from lasr.errors import UserError

# fmt: off
FORMATS = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif",
    ".ppm", ".pgm", ".pnm",
])
# fmt: on


def find_pictures(inputs: Iterable[str | Path], without: Path | None = None) -> dict[Path, Path]:
    """The pictures below the given paths, each once, and each one's name relative to where.

    inputs: files, folders (searched downwards for FORMATS, hidden ones passed over), globs, or
    `.txt` files with one path a line. A picture in a folder keeps its place below that folder.
    without: a folder of results, passed over when a folder around it is searched.
    Raises UserError: nothing there, or `without` itself is to be searched.
    """
    found: dict[Path, Path] = {}
    results = os.path.abspath(without) if without else ""
    for given in inputs:
        for path, name in _expand(str(given), results):
            found.setdefault(Path(os.path.abspath(path)), name)
    if not found:
        wanted = " ".join(sorted(FORMATS))
        raise UserError(f"no picture in {', '.join(map(str, inputs))}; looked for {wanted}")
    return found


def _expand(given: str, results: str) -> Iterator[tuple[Path, Path]]:
    path = Path(given)
    if path.is_dir():
        if os.path.abspath(path) == results:
            raise UserError(f"{path} holds the inputs; choose another folder for the results")
        for parent, folders, files in os.walk(path):
            folders[:] = sorted(
                f
                for f in folders
                if not f.startswith(".") and os.path.abspath(Path(parent, f)) != results
            )
            for file in sorted(files):
                if Path(file).suffix.lower() in FORMATS and not file.startswith("."):
                    yield Path(parent, file), Path(parent, file).relative_to(path)
    elif path.suffix.lower() == ".txt" and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield from _expand(line.strip(), results)
    elif path.is_file():
        yield path, Path(path.name)
    elif matches := sorted(glob.glob(given, recursive=True)):
        for match in matches:
            if os.path.isfile(match):
                yield Path(match), Path(Path(match).name)
    else:
        raise UserError(f"{given}: no such picture, folder, glob or list; check the path")


def targets(found: dict[Path, Path], out: Path, suffix: str) -> dict[Path, Path]:
    """Where each picture's result goes: below `out`, under its name with the new suffix.

    `a.jpg` beside `a.png` become `a.jpg.png` and `a.png.png`. Raises UserError where two pictures
    would still take the same name.
    """
    plain = Counter(name.with_suffix("") for name in found.values())
    result: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for path, name in found.items():
        stem = name.with_suffix("") if plain[name.with_suffix("")] == 1 else name
        target = out / stem.with_name(f"{stem.name}.{suffix}")
        if other := taken.get(target):
            raise UserError(
                f"{other} and {path} would both become {target}; give the folder that holds both,"
                " or enlarge them into different --out"
            )
        taken[target] = path
        result[path] = target
    return result


def pixel_counts(paths: Sequence[Path]) -> dict[Path, int]:
    """Pixels of each picture, from its header alone; 0 where it cannot be read."""

    def count(path: Path) -> int:
        try:
            with Image.open(path) as image:
                return image.width * image.height
        except Exception:  # said when the picture's turn comes
            return 0

    return {path: count(path) for path in paths}
