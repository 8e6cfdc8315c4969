"""How row groups become shards, and the LR and HR patches of a window become pairs."""

import heapq

import numpy as np

from trainer.config import Pairing


def divide(lr: np.ndarray, shards: int, seed: int) -> list[list[int]]:
    """The numbers of each shard's chunks: the largest first, to the shard that has the least.

    lr: LR patches of each chunk.
    """
    if shards == 1:
        return [list(range(len(lr)))]
    order = np.random.default_rng([seed, 2]).permutation(len(lr))
    order = order[np.argsort(-lr[order], kind="stable")]
    divided: list[list[int]] = [[] for _ in range(shards)]
    heap = [(0, number) for number in range(shards)]
    for chunk in order.tolist():
        has, number = heapq.heappop(heap)
        divided[number].append(chunk)
        heapq.heappush(heap, (has + int(lr[chunk]), number))
    return [sorted(shard) for shard in divided]


def paired(lr: np.ndarray, hr: np.ndarray, photograph: np.ndarray, pairing: Pairing) -> np.ndarray:
    """Pairs of rows, (n, 2), in the order of `lr`. photograph: of every row of the manifest.

    Without HR rows, which then are not needed, the second is -1.
    """
    if not len(hr):
        return np.stack([lr, np.full_like(lr, -1)], axis=1)
    any_hr = np.resize(hr, len(lr))
    if pairing == "random":
        return np.stack([lr, any_hr], axis=1)
    # The HR patches of a photograph are hr[first:past]; its LR patches take them in turn.
    hr = hr[np.argsort(photograph[hr], kind="stable")]
    first, past = (
        np.searchsorted(photograph[hr], photograph[lr], side) for side in ("left", "right")
    )
    turn, _ = _count_equal(photograph[lr])
    own_hr = hr[(first + turn % np.maximum(past - first, 1)) % len(hr)]
    return np.stack([lr, np.where(past > first, own_hr, any_hr)], axis=1)


def _count_equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each element: how many equal ones precede it, and how many there are in all."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    preceding = np.empty_like(order)
    preceding[order] = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    return preceding, counts[inverse]


def spread(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order that spreads every key evenly: of its n elements, one is in each n-th of the order.

    Elements with the same key keep their order.
    """
    preceding, counts = _count_equal(keys)
    return np.argsort((preceding + rng.random(len(keys))) / counts)
