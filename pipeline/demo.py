"""Copy the sample photographs of scikit-learn and scikit-image into a folder, for `make demo`.

python -m pipeline.demo data/demo/photographs
"""

import filecmp
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lasr.cli import refuse, run_command
from lasr.errors import UserError
from lasr.flags import UsageError
from lasr.ownership import check_folder, own_path, refused
from lasr.terminal.output import say
from lasr.terminal.summary import counted

PHOTOGRAPHS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png"),
    ),
}


def copy_photographs(folder: Path) -> list[Path]:
    """Copy the seven photographs into `folder`; those that are there already are left.

    Raises UserError: a package is not installed, or another file has the name of a photograph.
    """
    check_folder(folder, flag="FOLDER")
    sources: dict[Path, Path] = {}
    for package, (subfolder, names) in PHOTOGRAPHS.items():
        spec = find_spec(package)  # does not import the package
        if spec is None or spec.origin is None:
            raise UserError(f"{package} is not installed", "run `pip install 'la-sr[demo]'`")
        for name in names:
            sources[folder / name] = Path(spec.origin).parent / subfolder / name
    missing = {copy: source for copy, source in sources.items() if not os.path.lexists(copy)}
    for copy, source in sources.items():
        if copy not in missing and not _same(copy, source):
            raise refused(copy, "is another file than the sample photograph", "FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    for copy, source in missing.items():
        with own_path(copy) as temporary:
            # copy2 preserves the modification time, by which a rerun sees that nothing changed.
            shutil.copy2(source, temporary)
    return list(sources)


def _same(copy: Path, source: Path) -> bool:
    return copy.is_file() and not copy.is_symlink() and filecmp.cmp(copy, source, shallow=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Copy the photographs; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1:
        return refuse(UsageError("one FOLDER is needed", "see the first lines of pipeline/demo.py"))
    return run_command(
        lambda: say(f"{counted(len(copy_photographs(Path(words[0]))), 'photograph')} in {words[0]}")
    )


if __name__ == "__main__":
    sys.exit(main())
