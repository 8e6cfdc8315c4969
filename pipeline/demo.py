"""Copy the sample photographs of scikit-learn and scikit-image into a folder, for `make demo`.

python -m pipeline.demo data/demo/photographs
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from lasr.errors import UserError

PHOTOGRAPHS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png"),
    ),
}


def copy_photographs(folder: Path) -> list[Path]:
    """Copy the seven photographs into `folder`. Raises UserError: a package is not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for package, (subfolder, names) in PHOTOGRAPHS.items():
        spec = find_spec(package)  # does not import the package
        if spec is None or spec.origin is None:
            raise UserError(f"{package} is not installed", "run `pip install 'la-sr[demo]'`")
        for name in names:
            source = Path(spec.origin).parent / subfolder / name
            copies.append(folder / name)
            # copy2 preserves the modification time, by which a rerun sees that nothing changed.
            shutil.copy2(source, copies[-1])
    return copies


if __name__ == "__main__":
    print(f"{len(copy_photographs(Path(sys.argv[1])))} photographs in {sys.argv[1]}")
