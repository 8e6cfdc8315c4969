"""From a manifest to batches: which rows meet, how they are read, decoded and turned.

Shuffling. The manifest's row groups (256 rows, about 16 photographs) are put in random order and
taken WINDOW at a time; within a window all pairs are shuffled. Any two photographs can meet in a
batch in some epoch; within an epoch only those of one window can. Memory holds one window of
encoded PNGs. The order is a pure function of seed and epoch, and the batch of step s of seed and s:
nothing has to be saved to carry on exactly.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from schemas.manifest import PATCH_SIZE, Manifest, ManifestError, Role

COLUMNS = ("image_id", "role", "size", "caption", "image")  # all that training needs
WINDOW = 32  # row groups; about 0.5 GB of PNGs
LARGE_ROW_GROUP = 8192  # rows


@dataclass(frozen=True)
class Batch:
    """N pairs: an LR and an HR patch of one photograph, unless the photograph lacks a role."""

    lr: Tensor  # (N, 3, 56, 56) float32 in [0, 1]
    hr: Tensor  # (N, 3, 224, 224) float32 in [0, 1]
    lr_captions: list[str]
    hr_captions: list[str]
    lr_rows: list[int]  # places in the manifest, to name a patch in an error
    hr_rows: list[int]


@dataclass(frozen=True)
class RowGroup:
    """A row group of a part, and the number of its first row in the whole manifest."""

    file: int
    group: int
    first: int


class Patches:
    """The patches of a manifest, read lazily. Thread-safe.

    Raises ManifestError at once where the manifest cannot be trained on: a role is missing, sizes
    are not those of its role.
    """

    def __init__(self, manifest: Manifest, seed: int = 0):
        self.manifest, self.seed = manifest, seed
        self.groups, index = _read_index(manifest)
        self._firsts = np.array([group.first for group in self.groups])
        self.is_lr = _check_roles(manifest, index)
        codes = index["image_id"].combine_chunks().dictionary_encode().indices
        self._photograph = codes.to_numpy()
        self._cache: OrderedDict[int, Future[pa.Table]] = OrderedDict()
        self._lock = threading.Lock()
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Pairs in an epoch: one for every LR patch."""
        return int(self.is_lr.sum())

    @property
    def largest_group(self) -> int:
        """Rows of the largest row group: what one read brings into memory."""
        return int(np.diff(np.append(self._firsts, len(self.is_lr))).max())

    def _epoch(self, epoch: int) -> np.ndarray:
        """The pairs of an epoch in order, (n, 2) int64: row of the LR, row of the HR patch.

        Every LR patch comes once, with an HR patch of the same photograph, each of those as often
        as the others. A photograph without HR patches borrows one from its window.
        """
        rng = np.random.default_rng([self.seed, 0, epoch])
        order = rng.permutation(len(self.groups))
        ends = np.append(self._firsts, len(self.is_lr))
        pairs = []
        for start in range(0, len(order), WINDOW):
            spans = [np.arange(ends[g], ends[g + 1]) for g in order[start : start + WINDOW]]
            pairs.append(self._pair(np.concatenate(spans), rng))
        return np.concatenate(pairs)

    def _pair(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rows = rng.permutation(rows)  # so that the stable sort below deals each photograph's rows
        rows = rows[np.argsort(self._photograph[rows], kind="stable")]
        hr_rows = rows[~self.is_lr[rows]]
        anywhere = hr_rows if len(hr_rows) else np.flatnonzero(~self.is_lr)
        pairs = []
        for own in np.split(rows, np.flatnonzero(np.diff(self._photograph[rows])) + 1):
            far, near = own[self.is_lr[own]], own[~self.is_lr[own]]
            if not len(near):
                near = rng.choice(anywhere, len(far))
            pairs.append(np.stack([far, np.resize(near, len(far))], axis=1))
        return rng.permutation(np.concatenate(pairs))

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step (from 0), or the slice of it that process `rank` of `world` takes.

        A pure function of the seed, the step and the manifest; slices put together in the order of
        rank are the whole batch.
        """
        start, stop = (size * (step * world + r) // world for r in (rank, rank + 1))
        places = np.arange(start, stop)
        pairs = np.array([self.epoch(i // len(self))[i % len(self)] for i in places.tolist()])
        lr, lr_captions = self._patches(pairs[:, 0], "lr", places)
        hr, hr_captions = self._patches(pairs[:, 1], "hr", places)
        return Batch(lr, hr, lr_captions, hr_captions, pairs[:, 0].tolist(), pairs[:, 1].tolist())

    def _patches(
        self, rows: np.ndarray, role: Role, places: np.ndarray
    ) -> tuple[Tensor, list[str]]:
        pictures, captions = [], []
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            content, caption = self._read(row)
            rng = np.random.default_rng([self.seed, 1, place, int(role == "hr")])
            pictures.append(_turned(_decode(content, PATCH_SIZE[role], row), int(rng.integers(8))))
            captions.append(caption)
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return stacked.float().div_(255), captions

    def _read(self, row: int) -> tuple[bytes, str]:
        number = int(np.searchsorted(self._firsts, row, side="right")) - 1
        table = self._group(number)
        place = row - int(self._firsts[number])
        return table["image"][place]["bytes"].as_py(), table["caption"][place].as_py()

    def _group(self, number: int) -> pa.Table:
        """A row group's images and captions, read once and kept while its window lasts."""
        with self._lock:
            future = self._cache.get(number)
            mine = future is None
            if future is None:
                future = self._cache[number] = Future()
            self._cache.move_to_end(number)
            while len(self._cache) > WINDOW + 2:
                self._cache.popitem(last=False)
        if mine:  # the others wait for this thread instead of reading the same bytes again
            try:
                group = self.groups[number]
                part = pq.ParquetFile(self.manifest.files[group.file], memory_map=True)
                future.set_result(part.read_row_group(group.group, columns=["image", "caption"]))
            except Exception as error:
                future.set_exception(error)
        return future.result()

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
                    if len(ahead) > workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()


def _read_index(manifest: Manifest) -> tuple[list[RowGroup], pa.Table]:
    """Row groups and the columns that decide who meets whom; no pixel is read."""
    groups, tables, first = [], [], 0
    for number, file in enumerate(manifest.files):
        part = pq.ParquetFile(file)
        for group in range(part.num_row_groups):
            rows = part.metadata.row_group(group).num_rows
            if rows:
                groups.append(RowGroup(number, group, first))
            first += rows
        tables.append(part.read(columns=["image_id", "role", "size"]))
    index = pa.concat_tables(tables)
    if not len(index):
        raise ManifestError(f"{manifest.path}: no rows; loosen the query or build it again")
    return groups, index


def _check_roles(manifest: Manifest, index: pa.Table) -> np.ndarray:
    """True where a row is `lr`. Raises ManifestError: a role is missing or a size is off."""
    for role, size in PATCH_SIZE.items():
        sizes = index.filter(pc.equal(index["role"], role))["size"]
        if not len(sizes):
            raise ManifestError(
                f"{manifest.path}: no '{role}' rows; training needs both roles: keep them in the"
                " WHERE clause"
            )
        wrong = [n for n in pc.unique(sizes).to_pylist() if n != size]
        if wrong:
            raise ManifestError(
                f"{manifest.path}: '{role}' patches of {wrong[0]} pixels, expected {size}; build"
                " the manifest again"
            )
    is_lr: np.ndarray = pc.equal(index["role"], "lr").to_numpy()
    return is_lr


def _decode(content: bytes, size: int, row: int) -> np.ndarray:
    """PNG to size x size x 3 uint8 RGB."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None or pixels.shape != (size, size, 3):
        found = "no picture" if pixels is None else f"{pixels.shape[1]}x{pixels.shape[0]} pixels"
        raise ManifestError(f"manifest row {row}: {found}, expected a {size}x{size} PNG")
    return pixels


def _turned(pixels: np.ndarray, which: int) -> np.ndarray:
    """One of the eight flips and quarter turns of a square."""
    turned = np.rot90(pixels, which % 4)
    return np.ascontiguousarray(turned[:, ::-1] if which >= 4 else turned)
