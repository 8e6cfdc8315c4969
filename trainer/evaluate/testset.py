"""The pictures that methods are compared on: LR files, references, or both made from references."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from lasr.cli import progress
from lasr.errors import UserError
from lasr.files import atomic_path
from lasr.pictures.find import find_pictures
from lasr.pictures.read import read_rgb
from lasr.weights.digests import sha256
from trainer.evaluate.matching import match
from trainer.evaluate.resize import cut_to_multiple, reduce
from trainer.sheets import to_uint8

Protocol = Literal["rgb", "luma"]


@dataclass(frozen=True)
class Picture:
    """One LR picture, and what it should become where that is known."""

    name: str
    image: Path | None  # None: the reference, reduced, and not rounded to 8 bit
    reference: Path | None
    scale: int

    def read(self) -> Tensor:
        """The LR picture, (3, h, w), in [0, 1] where it is a file. Raises UserError: unreadable."""
        if self.image is not None:
            return read_rgb(self.image)
        assert self.reference is not None
        return reduce(read_rgb(self.reference), self.scale)

    @property
    def identity(self) -> str:
        """Of the LR picture's content, without reading it where it is made."""
        if self.image is not None:
            return sha256(self.image)
        assert self.reference is not None
        return f"{sha256(self.reference)} reduced"


def given(images: list[Path], references: list[Path], scale: int) -> list[Picture]:
    """LR files and, where references are given, the one of the same name for each.

    Raises UserError: no picture, two of one name, or references that fit more than one.
    """
    files = list(find_pictures(images))
    _refuse_twins(files)
    names = [file.stem for file in files]
    matched = match(names, list(find_pictures(references))) if references else {}
    return [Picture(file.stem, file, matched.get(file.stem), scale) for file in files]


def made(references: list[Path], protocol: Protocol, folder: Path, scale: int) -> list[Picture]:
    """LR pictures by MATLAB's bicubic from references alone, as the benchmarks have it.

    rgb: references cut to a multiple of the scale, and their LR in 8-bit RGB, both in `folder`.
    luma: references are the Y of MATLAB's rgb2ycbcr, 8 bit; LR stays unrounded, in memory. This is
    the protocol of SRCNN (Dong et al. 2014), whose row for bicubic later papers copied.
    """
    files = list(find_pictures(references))
    _refuse_twins(files)
    pictures = []
    with progress(len(files), "references", "img") as bar:
        for file in files:
            reference = cut_to_multiple(read_rgb(file), scale)
            if protocol == "luma":
                reference = luma(reference)
            target, image = folder / "reference" / f"{file.stem}.png", None
            _write(target, reference)
            if protocol == "rgb":
                image = folder / "lr" / f"{file.stem}.png"
                _write(image, reduce(reference, scale))
            pictures.append(Picture(file.stem, image, target, scale))
            bar.update()
    return pictures


def luma(picture: Tensor) -> Tensor:
    """(3, h, w) in [0, 1] to its Y of MATLAB's rgb2ycbcr, 16/255 to 235/255, three times."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64)
    y = (16 + (picture.double() * weights[:, None, None]).sum(0)) / 255
    return y.expand(3, -1, -1)


def _write(path: Path, picture: Tensor) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(picture)).save(temporary, format="PNG")


def _refuse_twins(files: list[Path]) -> None:
    by_name: dict[str, Path] = {}
    for file in files:
        if file.stem in by_name:
            raise UserError(
                f"{by_name[file.stem]} and {file}: two pictures of one name; rename one"
            )
        by_name[file.stem] = file
