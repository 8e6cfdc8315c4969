"""From a manifest to batches: which patches are paired, and how they are augmented.

Order. The row groups (256 rows, about 16 photographs) are shuffled and cut into windows of about
WINDOW rows (500 photographs). The pairs of a window are mixed: each row group is spread evenly over
its window, and each photograph over its row group, at random otherwise, so that a batch holds
different photographs from different parts of the manifest wherever there are enough. Over several
epochs any two photographs can be in one batch; within an epoch only those of one window can. Memory
holds one window of encoded PNGs, about 0.5 GB.

Shards. With --shards N the row groups are divided among N shards, once and for all epochs, so that
each has as many LR patches as the others within one row group. A batch takes an equal share of each
shard, shard after shard; a shard that has been read to its end begins its next epoch. A process
reads the row groups of the shards that its slice of the batch comes from, and no other.

Randomness. The order is a function of seed, shards and epoch alone, the augmentation and
degradation of the i-th pair of a run of seed and i. A batch is therefore the same for any number of
threads and processes, and a checkpoint needs no state of the data.

Bad rows. A row that cannot be used (a cut PNG, another size, no caption, a damaged page) is
replaced by the next row of its role in the manifest that can be; after the last comes the first.
The replacement depends on the manifest alone, so that threads, processes and resumed runs agree.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lasr.storage.remote import StoredFile
from schemas.manifest import PATCH_SIZE, Manifest, ManifestError, Role
from trainer.config import Augmentation, Degradation, Pairing, Split
from trainer.data.index import NO_ROLE, ROLES, opened, read_footer
from trainer.data.order import divide, paired, spread
from trainer.data.prefetch import ahead
from trainer.data.read_ahead import ReadAhead, first_uses
from trainer.data.reader import COLUMNS, LARGE_ROW_GROUP, BadRow, Reader, decode
from trainer.data.realesrgan import degrade

__all__ = ["COLUMNS", "Batch", "Patches"]

WINDOW = 8192  # rows that are shuffled together
SEARCH = 10_000  # rows that are tried in place of a bad one
SYMMETRIES: dict[Augmentation, tuple[int, ...]] = {  # see `flip_and_rotate`
    "none": (0,),
    "flips": (0, 2, 4, 6),
    "all": (0, 1, 2, 3, 4, 5, 6, 7),
}
AHEAD_BYTES = 2_000_000_000  # row groups out of storage, fetched ahead, at most half of the cache
AHEAD = 256  # pairs prepared ahead, 160 MB; training uses them while the next window is read


@dataclass(frozen=True)
class Batch:
    """N pairs of an LR and an HR patch of one photograph, or of two if it has only one role."""

    lr: Tensor  # (N, 3, 56, 56) float32 in [0, 1]
    hr: Tensor  # (N, 3, 224, 224) float32 in [0, 1]
    lr_captions: list[str]
    hr_captions: list[str]
    lr_rows: list[int]  # row numbers in the manifest, to name a patch in an error
    hr_rows: list[int]
    skipped: list[BadRow] = field(default_factory=list)  # rows that others took the place of


class Patches:
    """The patches of a manifest, read lazily. Thread-safe.

    degradation: of LR patches (table 5). pairing: an LR patch is paired with an HR patch of its own
    photograph, or with any of the window. augmentation: of both roles. split: `train` leaves out
    the rows that the manifest holds out. needed: the roles that are read; without `hr`, batches
    have no HR patch. shards: see above. Raises ManifestError at once if the manifest, or a shard,
    has no row of a needed role.
    """

    def __init__(
        self,
        manifest: Manifest,
        seed: int = 0,
        degradation: Degradation = "none",
        pairing: Pairing = "photograph",
        augmentation: Augmentation = "all",
        split: Split = "all",
        needed: Sequence[Role] = ("lr", "hr"),
        shards: int = 1,
    ):
        self.manifest, self.seed, self.shards = manifest, seed, shards
        self.degradation, self.pairing = degradation, pairing
        self.symmetries = SYMMETRIES[augmentation]
        self.needed = needed
        self.reader = Reader(manifest, WINDOW + LARGE_ROW_GROUP, needed)
        index = self.reader.index
        self.held_out = index.held_out if split == "train" else np.zeros_like(index.held_out)
        self.role = np.where(self.held_out, np.int8(NO_ROLE), index.role)  # in training
        self.rows = {role: np.flatnonzero(self.role == n) for n, role in enumerate(ROLES)}
        if lacking := [role for role in needed if not len(self.rows[role])]:
            raise ManifestError(
                f"{manifest.where}: no '{lacking[0]}' row has the split `train`, all are held out",
                "pass --split all, or keep rows of that split in the query",
            )
        counts = {
            role: np.bincount(self.reader.chunk_of[rows], minlength=len(self.reader.chunks))
            for role, rows in self.rows.items()
        }
        self.chunks_of_shards = divide(counts["lr"], shards, seed)
        self.lr_of_shards = [int(counts["lr"][own].sum()) for own in self.chunks_of_shards]
        for role in needed:
            if not all(counts[role][own].sum() for own in self.chunks_of_shards):
                raise ManifestError(
                    f"{manifest.where}: --shards {shards} of its {len(self.reader.chunks)} row"
                    f" groups leave a shard without an '{role}' patch",
                    "pass fewer shards",
                )
        # The last epoch and the next, and the one that is read ahead.
        self.epoch = lru_cache(maxsize=3 * shards)(self._epoch)

    def __len__(self) -> int:
        """Pairs in an epoch: one per LR patch."""
        return len(self.rows["lr"])

    @property
    def fetched(self) -> int:
        """The bytes that this process fetched from storage; 0 for a manifest on a disk."""
        stored = [file for file in self.manifest.parts if isinstance(file, StoredFile)]
        return stored[0].access.traffic.bytes if stored else 0

    def _epoch(self, epoch: int, shard: int = 0) -> np.ndarray:
        """The pairs of an epoch of a shard in order, (n, 2) int64: row of the LR and the HR patch.

        Every LR patch occurs once, and the HR patches of a photograph equally often. LR patches
        whose photograph has no HR patch in the window are paired with those of others.
        """
        rng = np.random.default_rng([self.seed, 0, epoch, shard][: 4 if shard else 3])
        own = self.chunks_of_shards[shard]
        chunks = [self.reader.chunks[own[i]] for i in rng.permutation(len(own))]
        spans = [np.arange(chunk.first, chunk.first + chunk.rows) for chunk in chunks]
        total = sum(chunk.rows for chunk in chunks)
        windows = -(-total * self.shards // WINDOW)  # all shards together hold one of WINDOW rows
        before = np.cumsum([0] + [chunk.rows for chunk in chunks[:-1]])
        cuts = np.searchsorted(before, np.arange(1, windows) * total / windows)
        return np.concatenate(
            [
                self._pairs(np.concatenate(spans[start:stop]), shard, rng)
                for start, stop in itertools.pairwise([0, *cuts, len(spans)])
                if start < stop
            ]
        )

    def _pairs(self, rows: np.ndarray, shard: int, rng: np.random.Generator) -> np.ndarray:
        """The pairs of a window of a shard, (n, 2), shuffled."""
        photograph, chunk_of = self.reader.index.photograph, self.reader.chunk_of
        lr, hr = (rng.permutation(rows[self.role[rows] == n]) for n in range(len(ROLES)))
        lr = lr[spread(photograph[lr], rng)]
        lr = lr[spread(chunk_of[lr], rng)]
        if not len(hr):
            hr = self.rows["hr"]
            hr = rng.permutation(hr[np.isin(chunk_of[hr], self.chunks_of_shards[shard])])
        return paired(lr, hr, photograph, self.pairing)

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step (from 0), or the slice of it that belongs to `rank` of `world`.

        size: pairs in the whole batch. A function of the seed, the step and the manifest alone; the
        slices in the order of rank make up the batch. Only the slice is read and decoded.
        """
        numbers = self._numbers(step, size, rank, world)
        pairs = np.array([self._pair(number, size) for number in numbers])
        skipped: list[BadRow] = []
        lr, lr_captions, lr_rows = self._patches(pairs[:, 0].tolist(), "lr", numbers, skipped)
        hr_pairs = pairs[:, 1].tolist() if "hr" in self.needed else []
        hr, hr_captions, hr_rows = self._patches(hr_pairs, "hr", numbers[: len(hr_pairs)], skipped)
        return Batch(lr, hr, lr_captions, hr_captions, lr_rows, hr_rows, skipped)

    def _numbers(self, step: int, size: int, rank: int, world: int) -> range:
        """The numbers of a rank's pairs in the batch of a step, from the start of the run."""
        return range(*(size * (step * world + r) // world for r in (rank, rank + 1)))

    def _pair(self, number: int, size: int) -> np.ndarray:
        """The rows of a pair. size: of the batch, of which each shard has an equal part."""
        step, position = divmod(number, size)
        part = -(-size // self.shards)
        shard, turn = divmod(position, part)
        if size % self.shards:  # no batch of training
            turn, shard = divmod(position, self.shards)
        epoch, own = divmod(step * part + turn, self.lr_of_shards[shard])
        pair: np.ndarray = self.epoch(epoch, shard)[own]
        return pair

    def _patches(
        self, rows: list[int], role: Role, numbers: range, skipped: list[BadRow]
    ) -> tuple[Tensor, list[str], list[int]]:
        """The augmented patches (n, 3, h, w) in [0, 1] of `rows`, their captions and rows.

        numbers: of their pairs, which the augmentation depends on. Bad rows are added to `skipped`;
        the rows that took their places are returned.
        """
        pictures = np.empty((len(rows), PATCH_SIZE[role], PATCH_SIZE[role], 3), np.uint8)
        captions, used = [], []
        stored = self.reader.read(rows)
        for picture, row, number, found in zip(pictures, rows, numbers, stored, strict=True):
            pixels, caption, row_used = self._usable(row, role, found, skipped)
            rng = np.random.default_rng([self.seed, 1, number, int(role == "hr")])
            which = self.symmetries[int(rng.integers(len(self.symmetries)))]
            picture[:] = flip_and_rotate(pixels, which)
            if role == "lr" and self.degradation == "realesrgan":
                picture[:] = degrade(picture, rng)
            captions.append(caption)
            used.append(row_used)
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255), captions, used

    def _usable(
        self, row: int, role: Role, found: tuple[np.ndarray, str] | BadRow, skipped: list[BadRow]
    ) -> tuple[np.ndarray, str, int]:
        """Pixels, caption and number of a row, or of the next row of its role that can be used.

        found: what the reader says of `row`. Raises ManifestError: none of SEARCH rows can be used.
        """
        rows = self.rows[role]
        position = int(np.searchsorted(rows, row))
        for tried in range(1, min(SEARCH, len(rows)) + 1):
            if not isinstance(found, BadRow):
                try:
                    return decode(found[0], role), found[1], row
                except ValueError as error:
                    found = BadRow(row, str(error))
            skipped.append(found)
            row = int(rows[(position + tried) % len(rows)])
            (found,) = self.reader.read([row])
        raise ManifestError(
            f"{self.manifest.where}: {tried} '{role}' patches in a row cannot be used; row"
            f" {rows[position]} {skipped[-tried].reason}",
            "build the manifest again",
        )

    def pixels(self, role: Role, rows: np.ndarray) -> list[np.ndarray]:
        """The pixels of patches as they are stored, of the next usable ones for bad rows."""
        found = zip(rows.tolist(), self.reader.read(rows.tolist()), strict=True)
        return [self._usable(row, role, stored, [])[0] for row, stored in found]

    def batches(
        self, start: int, stop: int, size: int, workers: int, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """`batch` for the steps start to stop - 1, in order, prepared ahead by threads."""
        most = max(workers, AHEAD * world // size)
        with contextlib.ExitStack() as stack:
            fetching = self._read_ahead(start, stop, size, rank, world)
            if fetching:
                stack.enter_context(fetching)

            def make(step: int) -> Batch:
                if fetching:
                    fetching.reached(step)
                return self.batch(step, size, rank, world)

            yield from ahead(make, start, stop, workers, most)

    def _read_ahead(
        self, start: int, stop: int, size: int, rank: int, world: int
    ) -> ReadAhead | None:
        """What fetches the row groups that these steps of a rank need; None: nothing is remote."""
        remote = [file for file in self.manifest.parts if isinstance(file, StoredFile)]
        if not remote:
            return None
        reader, roles = self.reader, slice(0, len(self.needed))

        def chunks_of(step: int) -> list[int]:
            pairs = [self._pair(i, size) for i in self._numbers(step, size, rank, world)]
            rows = np.array(pairs)[:, roles].ravel(order="F")  # as `batch` reads them
            return list(dict.fromkeys(reader.chunk_of[rows].tolist()))

        of_steps = ((step, chunks_of(step)) for step in range(start, stop))
        uses = first_uses(of_steps, lambda n: reader.chunks[n].rows, reader.cache_rows)
        neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # share the cache, if torchrun
        most = min(remote[0].access.cache.limit // 2 // neighbours, AHEAD_BYTES)
        steps = -(-WINDOW // size)  # two windows
        return ReadAhead(uses, reader.fetch, reader.stored_size, most, steps)

    def named(self, batch: Batch) -> str:
        """The rows of a batch, for an error."""
        return f"manifest rows lr {batch.lr_rows}, hr {batch.hr_rows}"

    def described(self, batch: Batch) -> dict[str, list[dict[str, Any]]]:
        """By role, the rows of a batch with their ids."""
        names = self.manifest.schema.names
        columns = [name for name in ("patch_id", "image_path") if name in names]
        tables = []
        for file in self.manifest.parts:
            with opened(file, read_footer(file), columns) as part:
                tables.append(part.read(columns))
        table = pa.concat_tables(tables)
        return {
            role: [{"row": row, **table.slice(row, 1).to_pylist()[0]} for row in rows]
            for role, rows in (("lr", batch.lr_rows), ("hr", batch.hr_rows))
        }


def flip_and_rotate(pixels: np.ndarray, which: int) -> np.ndarray:
    """One (0 to 7) of the eight symmetries of a square picture."""
    rotated = np.rot90(pixels, which % 4)
    return rotated[:, ::-1] if which >= 4 else rotated
