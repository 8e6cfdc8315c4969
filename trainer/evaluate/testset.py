"""The pictures that methods are compared on, and which file belongs to which picture."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from lasr import ownership
from lasr.cli import progress
from lasr.errors import UserError
from lasr.files import IsOurs, atomic_path
from lasr.marks import in_picture
from lasr.pictures.find import find_pictures
from lasr.pictures.read import read_rgb
from lasr.weights.digests import sha256
from trainer.evaluate import scores

if TYPE_CHECKING:
    from torch import Tensor

Protocol = Literal["rgb", "luma"]

# Suffixes that programs add to a picture's name: 0801x4.png, Canon_001_LR4.png, baby_SR.png.
_SUFFIX = re.compile(
    r"([_.-]?x\d+|[_.-](sr|lr|hr|gt|out|output|rlt|result|\d+x)\d*)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Picture:
    """An LR picture and its reference, if there is one."""

    name: str
    image: Path | None  # None: the LR picture is the reduced reference, not rounded to 8 bit
    reference: Path | None
    scale: int

    def read(self) -> "Tensor":
        """Return the LR picture, (3, h, w), in [0, 1] if it is a file.

        Raises UserError: the file cannot be read.
        """
        from trainer.evaluate.resize import reduce

        if self.image is not None:
            return read_rgb(self.image)
        assert self.reference is not None
        return reduce(read_rgb(self.reference), self.scale)

    @property
    def identity(self) -> str:
        """A digest of the LR picture's content. An LR picture in memory is not computed for it."""
        if self.image is not None:
            return sha256(self.image)
        assert self.reference is not None
        return f"{sha256(self.reference)} reduced"


def from_images(images: list[Path], references: list[Path], scale: int) -> list[Picture]:
    """Take LR files and, if there are references, the one of the same name for each.

    Raises UserError: no picture, two pictures of one name, or ambiguous references.
    """
    files = find(images)
    names = [file.stem for file in files]
    matched = match(names, list(find_pictures(references))) if references else {}
    return [Picture(file.stem, file, matched.get(file.stem), scale) for file in files]


def from_references(
    references: list[Path], protocol: Protocol, folder: Path, scale: int
) -> list[Picture]:
    """Make LR pictures from references by MATLAB's antialiased bicubic, as benchmarks do.

    rgb: writes references, cut to a multiple of the scale, and their LR as 8-bit RGB to `folder`.
    luma: writes the references' Y of MATLAB's rgb2ycbcr, 8 bit; LR stays in memory, unrounded.
    This is the protocol of SRCNN (Dong et al. 2014), whose bicubic row later papers copied.
    Raises UserError: no picture, two pictures of one name, or an unreadable one.
    """
    files = find(references)
    is_ours = None if scores.is_old(folder) else ownership.is_ours
    from trainer.evaluate.resize import cut_to_multiple, luma, reduce

    pictures = []
    with progress(len(files), "references", "img") as bar:
        for file in files:
            reference = cut_to_multiple(read_rgb(file), scale)
            if protocol == "luma":
                reference = luma(reference)
            target, image = folder / "reference" / f"{file.stem}.png", None
            _write(target, reference, is_ours)
            if protocol == "rgb":
                image = folder / "lr" / f"{file.stem}.png"
                _write(image, reduce(reference, scale), is_ours)
            pictures.append(Picture(file.stem, image, target, scale))
            bar.update()
    return pictures


def match(names: Iterable[str], files: list[Path], label: str = "") -> dict[str, Path]:
    """Find the file for each picture name (a stem). Names without a file are left out.

    A file of the same stem wins. Otherwise stems are compared without usual suffixes and, for the
    file, without the label of the method. Raises UserError: two files for a name, or two names for
    a file.
    """
    found: dict[str, Path] = {}
    for name in names:
        candidates = [file for file in files if file.stem == name] or [
            file for file in files if _bare(file.stem, label) == _bare(name, label)
        ]
        if len(candidates) > 1:
            several = ", ".join(file.name for file in candidates[:3])
            raise UserError(
                f"{candidates[0].parent}: {several} all match {name}", "keep one of them"
            )
        if not candidates:
            continue
        (file,) = candidates
        if other := next((known for known, path in found.items() if path == file), None):
            raise UserError(f"{file}: matches both {other} and {name}", "rename it")
        found[name] = file
    return found


def _bare(stem: str, label: str) -> str:
    bare = stem
    if label:
        bare = re.sub(rf"(?<=.)[_.-]{re.escape(label)}$", "", stem, flags=re.IGNORECASE)
    while (shorter := _SUFFIX.sub("", bare)) not in ("", bare):
        bare = shorter
    return bare


def find(paths: list[Path]) -> list[Path]:
    """The picture files in `paths`. Raises UserError: none, or two of one name."""
    by_name: dict[str, Path] = {}
    for file in find_pictures(paths):
        if file.stem in by_name:
            raise UserError(
                f"{by_name[file.stem]} and {file}: two pictures of one name", "rename one of them"
            )
        by_name[file.stem] = file
    return list(by_name.values())


def _write(path: Path, picture: "Tensor", is_ours: IsOurs | None) -> None:
    from trainer.sheets import to_uint8

    with atomic_path(path, is_ours) as temporary:
        Image.fromarray(to_uint8(picture)).save(temporary, format="PNG", **in_picture())
