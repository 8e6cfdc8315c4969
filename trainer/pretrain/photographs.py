"""From photographs to batches: pixels in memory, and which crops make up the batch of a step.

Every photograph is decoded once, at the start, and shrunk to --longest-side. Its LR picture is made
from the whole of it as benchmarks make theirs: MATLAB's antialiased bicubic, rounded to 8 bits.
Both stay in memory as bytes, 17/16 of 3 bytes a pixel, within --memory-mb. So a crop costs a copy,
and no step waits for a decoder.

Randomness. Which photographs are held out depends on their content alone, and what of a large one
is kept on its content and the seed. The crop and the symmetry of the i-th patch of a run are
functions of the seed and i. A checkpoint needs no state of the data.
"""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lasr.cli import progress
from lasr.errors import UserError
from lasr.pictures.find import find_pictures
from lasr.pictures.read import read_picture
from lasr.terminal.summary import counted
from schemas.manifest import SCALE
from trainer.data.dataset import flip_and_rotate
from trainer.data.prefetch import ahead
from trainer.data.reader import BadRow
from trainer.evaluate.resize import cut_to_multiple, reduce
from trainer.pretrain.config import PretrainConfig
from trainer.sheets import to_uint8

log = logging.getLogger(__name__)

AHEAD = 8  # steps that are prepared ahead
BACKDROP = 128  # grey behind transparent pixels, as in builds


@dataclass(frozen=True)
class Photograph:
    """A photograph and its LR picture: h x w x 3 uint8, h and w multiples of SCALE."""

    name: str
    digest: str  # sha256 of the file
    hr: np.ndarray
    lr: np.ndarray

    def cut(self, y: int, x: int, height: int, width: int) -> "Photograph":
        """The part from LR pixel (y, x) on, of height x width LR pixels; a copy."""
        lr = np.s_[y : y + height, x : x + width]
        hr = np.s_[SCALE * y : SCALE * (y + height), SCALE * x : SCALE * (x + width)]
        return Photograph(self.name, self.digest, self.hr[hr].copy(), self.lr[lr].copy())


@dataclass(frozen=True)
class Crops:
    """A batch: pairs of an LR and an HR patch of the same place."""

    lr: Tensor  # (n, 3, h, w) float32 in [0, 1]
    hr: Tensor  # (n, 3, SCALE h, SCALE w) float32 in [0, 1]
    places: list[tuple[str, int, int]]  # photograph, left and top in LR pixels
    skipped: list[BadRow] = field(default_factory=list)  # none: photographs are checked before


class Photographs:
    """The photographs of a run: those it trains on, and those held out. Thread-safe.

    found: the files, as `find_pictures` returns them; None: find them. Raises UserError at once:
    nothing to train on, inputs that do not exist. Files that cannot be used are named in a warning
    and left out; so are files with the same bytes as another.
    """

    def __init__(self, config: PretrainConfig, found: dict[Path, Path] | None = None):
        self.config, self.patch, self.seed = config, config.patch, config.seed
        digests = self._unique(found or find_pictures(config.images, config.folder))
        # By content alone: a run that starts from another one's weights, with another seed and
        # from other folders, holds out the same photographs.
        order = sorted(digests)
        held = max(1, round(config.held_out * len(order))) if config.held_out else 0
        if len(order) <= held:
            raise UserError(
                f"--images: {counted(len(order), 'photograph')}, and {held} of them would be"
                " held out",
                "give more photographs, or pass --held-out 0",
            )
        share = config.memory_mb * 2**20 // (len(order) - held)
        self.training: list[Photograph] = []
        self.held_out: list[Photograph] = []
        self.shrunk = self.cut = 0  # photographs that --longest-side and --memory-mb concern
        used: list[str] = []
        with (
            progress(len(order), "photographs", "img") as bar,
            ThreadPoolExecutor(config.workers, thread_name_prefix="photographs") as executor,
        ):
            named = [(digests[digest], digest) for digest in order]
            for number, photograph in enumerate(executor.map(self._read, named)):
                bar.update()
                if photograph is None:
                    continue
                used.append(photograph.digest)
                if number < held:
                    self.held_out.append(photograph)
                else:
                    self.training.append(self._share_of(photograph, share))
        if not self.training:
            raise UserError(
                f"--images: none of {counted(len(order), 'photograph')} can be trained on",
                f"give photographs of at least {SCALE * self.patch} pixels each way",
            )
        if self.cut:
            log.warning(
                "%s cut to %d MB each, a share of --memory-mb",
                counted(self.cut, "photograph"), share // 2**20,
            )  # fmt: skip
        self.identity = hashlib.sha256("".join(sorted(used)).encode()).hexdigest()[:32]
        positions = [
            (p.lr.shape[0] - self.patch + 1) * (p.lr.shape[1] - self.patch + 1)
            for p in self.training
        ]
        self.positions = np.cumsum(positions)  # of LR patches, over all photographs

    def _unique(self, found: dict[Path, Path]) -> dict[str, Path]:
        """The files by the digest of their bytes."""
        paths: dict[str, Path] = {}
        twice = []
        for path in found:
            try:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError as error:
                log.warning("%s: left out: %s", path, error.strerror)
                continue
            if digest in paths:
                twice.append(path)
            paths.setdefault(digest, path)
        if twice:
            files = counted(len(twice), "file")
            log.warning("%s left out, the same as others: %s", files, twice[0])
        return paths

    def _read(self, named: tuple[Path, str]) -> Photograph | None:
        """A photograph in memory; None, and a warning, if it cannot be used."""
        path, digest = named
        try:
            pixels = read_picture(path).over(BACKDROP)
        except UserError as error:
            log.warning("left out: %s", error.problem)
            return None
        picture = torch.tensor(pixels).permute(2, 0, 1).float().div_(255)
        longest = max(picture.shape[-2:])
        if 0 < self.config.longest_side < longest:
            self.shrunk += 1
            factor = self.config.longest_side / longest
            size = [round(side * factor) for side in picture.shape[-2:]]
            picture = F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0]
        height, width = picture.shape[-2:]
        if min(height, width) < SCALE * self.patch:
            log.warning(
                "left out: %s: %dx%d is less than a patch of %d", path, width, height,
                SCALE * self.patch,
            )  # fmt: skip
            return None
        hr = to_uint8(cut_to_multiple(picture, SCALE))
        exact = torch.from_numpy(hr).permute(2, 0, 1).double().div_(255)
        return Photograph(path.name, digest, hr, to_uint8(reduce(exact, SCALE)))

    def _share_of(self, photograph: Photograph, share: int) -> Photograph:
        """The photograph, or a part of the same shape that takes `share` bytes."""
        taken = photograph.hr.nbytes + photograph.lr.nbytes
        if taken <= share:
            return photograph
        self.cut += 1
        factor = (share / taken) ** 0.5
        height, width = (max(self.patch, int(n * factor)) for n in photograph.lr.shape[:2])
        rng = np.random.default_rng([self.seed, 3, int(photograph.digest[:16], 16)])
        y, x = (
            int(rng.integers(n - part + 1))
            for n, part in zip(photograph.lr.shape[:2], (height, width), strict=True)
        )
        return photograph.cut(y, x, height, width)

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Crops:
        """The batch of a step (from 0), or the slice of it that belongs to `rank` of `world`.

        size: patches in the whole batch. A function of the seed, the step and the photographs.
        """
        start, stop = (size * (step * world + r) // world for r in (rank, rank + 1))
        side = self.patch
        lr = np.empty((stop - start, side, side, 3), np.uint8)
        hr = np.empty((stop - start, SCALE * side, SCALE * side, 3), np.uint8)
        places = []
        for i, number in enumerate(range(start, stop)):
            rng = np.random.default_rng([self.seed, 0, number])
            drawn = [self._place(rng) for _ in range(self.config.candidates)]
            parts = [photograph.cut(y, x, side, side) for photograph, y, x in drawn]
            chosen = int(np.argmax([texture(part.lr) for part in parts])) if len(parts) > 1 else 0
            (photograph, y, x), part = drawn[chosen], parts[chosen]
            symmetry = int(rng.integers(8))
            lr[i], hr[i] = (flip_and_rotate(pixels, symmetry) for pixels in (part.lr, part.hr))
            places.append((photograph.name, x, y))
        return Crops(to_tensor(lr), to_tensor(hr), places)

    def _place(self, rng: np.random.Generator) -> tuple[Photograph, int, int]:
        """A photograph and the top left LR pixel of a patch in it, all places equally likely."""
        position = int(rng.integers(self.positions[-1]))
        which = int(np.searchsorted(self.positions, position, side="right"))
        photograph = self.training[which]
        rest = position - (int(self.positions[which - 1]) if which else 0)
        y, x = divmod(rest, photograph.lr.shape[1] - self.patch + 1)
        return photograph, y, x

    def batches(
        self, start: int, stop: int, size: int, workers: int, rank: int = 0, world: int = 1
    ) -> Iterator[Crops]:
        """`batch` for the steps start to stop - 1, in order, prepared ahead by threads."""
        yield from ahead(
            lambda step: self.batch(step, size, rank, world), start, stop, workers, AHEAD
        )

    def named(self, batch: Crops) -> str:
        """The photographs of a batch, for an error."""
        names = sorted({name for name, _, _ in batch.places})
        return f"photographs {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"

    def described(self, batch: Crops) -> dict[str, list[dict[str, Any]]]:
        """The crops of a batch, in LR pixels."""
        return {"crops": [{"image": name, "x": x, "y": y} for name, x, y in batch.places]}


def texture(pixels: np.ndarray) -> float:
    """The mean absolute difference between neighbours in green, of h x w x 3 uint8: 0 to 510."""
    green = pixels[..., 1].astype(np.int16)
    return float(sum(np.abs(np.diff(green, axis=axis)).mean() for axis in (0, 1)))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Pictures n x h x w x 3 uint8 as (n, 3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
