"""The pictures that a run is validated on: held-out patches, and those of --validate-on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lasr.errors import UserError
from lasr.pictures.find import find_pictures
from lasr.pictures.read import read_rgb
from schemas.manifest import PATCH_SIZE, SCALE, Role
from trainer.config import TrainConfig
from trainer.data.dataset import Patches
from trainer.data.index import FINE, ROLES
from trainer.data.reader import BadRow, decode
from trainer.evaluate import testset

MOST = 32  # held-out patches of a role, and pictures of --validate-on
CHUNKS = 8  # row groups that held-out patches are read from, of one role
SMALLEST, LARGEST = PATCH_SIZE["lr"], 3 * PATCH_SIZE["lr"]  # sides of a picture's middle, pixels


@dataclass(frozen=True)
class Look:
    """An LR picture (3, h, w) and the true SR picture if it is known, float32 in [0, 1]."""

    name: str
    lr: Tensor
    reference: Tensor | None = None


@dataclass(frozen=True)
class HeldOut:
    """Patches of one role of photographs that are never trained on."""

    pictures: Tensor  # (n, 3, h, w) float32 in [0, 1]
    captions: list[str]


def held_out(patches: Patches, role: Role) -> HeldOut:
    """At most MOST held-out patches of a role, spread over the manifest: the same at each call.

    Patches that cannot be read are left out.
    """
    index, chunk_of = patches.reader.index, patches.reader.chunk_of
    is_role = index.role == ROLES.index(role)
    rows = np.flatnonzero(patches.held_out & is_role & (index.fault == FINE))
    chunks = np.unique(chunk_of[rows])
    rows = rows[np.isin(chunk_of[rows], _spread(chunks, CHUNKS))]
    chosen = _spread(rows, MOST).tolist()
    pictures, captions = [], []
    for found in patches.reader.read(chosen):
        if isinstance(found, BadRow):
            continue
        try:
            pictures.append(decode(found[0], role))
        except ValueError:
            continue
        captions.append(found[1])
    size = PATCH_SIZE[role]
    pixels = np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8)
    return HeldOut(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, captions)


def given(config: TrainConfig) -> list[Look]:
    """The middles of the pictures of --validate-on, with those of --reference of the same name.

    Raises UserError: no picture, too many, one that is too small or without a reference, or a
    reference of another size.
    """
    if config.validate_on is None:
        return []
    files = testset.find([config.validate_on])
    if len(files) > MOST:
        raise UserError(
            f"--validate-on {config.validate_on}: {len(files)} pictures, and each validation would"
            f" enlarge all of them; at most {MOST} are taken",
            "give a folder of fewer",
        )
    references: dict[str, Path] = {}
    if config.reference is not None:
        candidates = list(find_pictures([config.reference]))
        references = testset.match([file.stem for file in files], candidates)
    looks = []
    for file in files:
        lr, reference = read_rgb(file), None
        height, width = lr.shape[-2:]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"--validate-on: {file} is {width}x{height}",
                f"give pictures of at least {SMALLEST} pixels each way",
            )
        if config.reference is not None:
            if file.stem not in references:
                raise UserError(f"--reference {config.reference}: nothing of the name {file.stem}",
                                "add it, or leave the picture out")  # fmt: skip
            reference = read_rgb(references[file.stem])
            if reference.shape[-2:] != (SCALE * height, SCALE * width):
                raise UserError(
                    f"{references[file.stem]}: {reference.shape[-1]}x{reference.shape[-2]}, and"
                    f" {SCALE} times {file.name} is {SCALE * width}x{SCALE * height}",
                    "give references of that size",
                )
        looks.append(_middle(file.stem, lr, reference))
    return looks


def is_watched(patches: Patches, config: TrainConfig) -> bool:
    """Whether there is anything to validate on, and it is asked for."""
    return config.cadence > 0 and bool(patches.held_out.any() or config.validate_on)


def _middle(name: str, lr: Tensor, reference: Tensor | None) -> Look:
    """The middle of a picture; its sides are multiples of a patch's, which every network takes."""
    cuts = []
    for side in lr.shape[-2:]:
        length = min(side // SMALLEST * SMALLEST, LARGEST)
        cuts.append(((side - length) // 2, length))
    (top, height), (left, width) = cuts
    small = lr[:, top : top + height, left : left + width]
    if reference is not None:
        reference = reference[
            :,
            SCALE * top : SCALE * (top + height),
            SCALE * left : SCALE * (left + width),
        ]
    return Look(name, small, reference)


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spread, in their order."""
    if len(values) <= most:
        return values
    picked: np.ndarray = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    return picked


def looks_of(patches: HeldOut) -> Iterable[Look]:
    """Held-out LR patches as pictures to enlarge."""
    return [Look(str(number), lr) for number, lr in enumerate(patches.pictures)]
