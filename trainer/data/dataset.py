"""From a manifest to batches: which patches meet, and how they are turned and degraded.

Which rows can meet in a batch. The row groups (256 rows, about 16 photographs) are put in random
order and cut into windows of about WINDOW rows (500 photographs). The pairs of a window are mixed:
each row group is spread evenly over its window, and each photograph over its row group, at random
otherwise, so that a batch holds different photographs from different places of the manifest
wherever there are enough of them. Any two photographs can meet in some epoch; within an epoch only
those of one window can. Memory holds one window of encoded PNGs, about 0.5 GB.

Chance. The order is a pure function of seed and epoch; what happens to the i-th pair of a run
(turning, degrading) of seed and i. A batch is thus the same whatever the number of threads and
processes, and nothing has to be saved to carry on exactly.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from schemas.manifest import PATCH_SIZE, Manifest, Role
from trainer.data.degradation import Degradation, degrade
from trainer.data.reader import COLUMNS, LARGE_ROW_GROUP, Reader, decode

__all__ = ["COLUMNS", "Batch", "Pairing", "Patches"]

Pairing = Literal["photograph", "random"]
WINDOW = 8192  # rows that are mixed with each other
AHEAD = 256  # pairs prepared ahead, 160 MB: they bridge the reading of the next window


@dataclass(frozen=True)
class Batch:
    """N pairs: an LR and an HR patch of one photograph, unless the photograph lacks a role."""

    lr: Tensor  # (N, 3, 56, 56) float32 in [0, 1]
    hr: Tensor  # (N, 3, 224, 224) float32 in [0, 1]
    lr_captions: list[str]
    hr_captions: list[str]
    lr_rows: list[int]  # places in the manifest, to name a patch in an error
    hr_rows: list[int]


class Patches:
    """The patches of a manifest, read lazily. Thread-safe.

    degradation: what LR patches go through (table 5). pairing: the HR patch that an LR patch meets
    is one of its own photograph, or any of the window. Raises ManifestError at once where the
    manifest cannot be trained on.
    """

    def __init__(
        self,
        manifest: Manifest,
        seed: int = 0,
        degradation: Degradation = "none",
        pairing: Pairing = "photograph",
    ):
        self.manifest, self.seed = manifest, seed
        self.degradation, self.pairing = degradation, pairing
        self.reader = Reader(manifest, keep=WINDOW + LARGE_ROW_GROUP)
        self.is_lr = self.reader.is_lr
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Pairs in an epoch: one for every LR patch."""
        return int(self.is_lr.sum())

    def _epoch(self, epoch: int) -> np.ndarray:
        """The pairs of an epoch in order, (n, 2) int64: row of the LR, row of the HR patch.

        Every LR patch comes once, and every HR patch of a photograph as often as its others. A
        photograph without HR patches in its window borrows from the others there.
        """
        rng = np.random.default_rng([self.seed, 0, epoch])
        chunks = [self.reader.chunks[i] for i in rng.permutation(len(self.reader.chunks))]
        spans = [np.arange(chunk.first, chunk.first + chunk.rows) for chunk in chunks]
        windows = -(-len(self.is_lr) // WINDOW)
        before = np.cumsum([0] + [chunk.rows for chunk in chunks[:-1]])
        cuts = np.searchsorted(before, np.arange(1, windows) * len(self.is_lr) / windows)
        return np.concatenate(
            [
                self._pairs(np.concatenate(spans[start:stop]), rng)
                for start, stop in itertools.pairwise([0, *cuts, len(spans)])
            ]
        )

    def _pairs(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The pairs of a window, (n, 2), mixed."""
        photograph, chunk_of = self.reader.photograph, self.reader.chunk_of
        far, near = (rng.permutation(rows[self.is_lr[rows] == role]) for role in (True, False))
        far = far[_spread(photograph[far], rng)]
        far = far[_spread(chunk_of[far], rng)]
        if not len(near):
            near = rng.permutation(np.flatnonzero(~self.is_lr))
        anyone = np.resize(near, len(far))
        if self.pairing == "random":
            return np.stack([far, anyone], axis=1)
        near = near[np.argsort(photograph[near], kind="stable")]
        first, past = (
            np.searchsorted(photograph[near], photograph[far], s) for s in ("left", "right")
        )
        own = near[(first + _turns(photograph[far])[0] % np.maximum(past - first, 1)) % len(near)]
        return np.stack([far, np.where(past > first, own, anyone)], axis=1)

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step (from 0), or the slice of it that process `rank` of `world` takes.

        A pure function of the seed, the step and the manifest; slices put together in the order of
        rank are the whole batch. Only the slice is read and decoded.
        """
        start, stop = (size * (step * world + r) // world for r in (rank, rank + 1))
        places = range(start, stop)
        pairs = np.array([self.epoch(i // len(self))[i % len(self)] for i in places])
        lr_rows, hr_rows = pairs.T.tolist()
        lr, lr_captions = self._patches(lr_rows, "lr", places)
        hr, hr_captions = self._patches(hr_rows, "hr", places)
        return Batch(lr, hr, lr_captions, hr_captions, lr_rows, hr_rows)

    def _patches(self, rows: list[int], role: Role, places: range) -> tuple[Tensor, list[str]]:
        pictures = np.empty((len(rows), PATCH_SIZE[role], PATCH_SIZE[role], 3), np.uint8)
        captions = []
        found = self.reader.read(rows)
        for picture, row, place, (content, caption) in zip(
            pictures, rows, places, found, strict=True
        ):
            rng = np.random.default_rng([self.seed, 1, place, int(role == "hr")])
            picture[:] = _turned(decode(content, role, row), int(rng.integers(8)))
            if role == "lr" and self.degradation == "realesrgan":
                picture[:] = degrade(picture, rng)
            captions.append(caption)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255), captions

    def batches(
        self, start: int, stop: int, size: int, workers: int, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """`batch` for the steps start..stop-1, in order, prepared ahead by threads.

        Threads, not processes: reading and PNG decoding release the interpreter's lock, the window
        is shared, and nothing is left behind by a kill.
        """
        with ThreadPoolExecutor(workers, thread_name_prefix="patches") as executor:
            ahead: deque[Future[Batch]] = deque()
            try:
                for step in range(start, stop):
                    ahead.append(executor.submit(self.batch, step, size, rank, world))
                    if len(ahead) > max(workers, AHEAD * world // size):
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()


def _turns(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each element: how many of its key came before it, and how many there are in all."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    turns = np.empty_like(order)
    turns[order] = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    return turns, counts[inverse]


def _spread(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order that spreads every key evenly: the j-th of its n lies in the j-th n-th of the whole.

    Elements of one key keep their order.
    """
    turns, counts = _turns(keys)
    return np.argsort((turns + rng.random(len(keys))) / counts)


def _turned(pixels: np.ndarray, which: int) -> np.ndarray:
    """One of the eight flips and quarter turns of a square."""
    turned = np.rot90(pixels, which % 4)
    return turned[:, ::-1] if which >= 4 else turned
