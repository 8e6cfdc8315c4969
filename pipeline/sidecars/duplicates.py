"""Photographs and patches that look the same, found by their perceptual hashes.

Recorded is, for each that looks like another, which one is kept: who leaves out every recorded `id`
has no two left whose hashes differ in MOST bits or fewer. Of photographs the largest are kept, of
patches the farthest (lr) or nearest (hr) of their photographs; patches are compared within their
role. The table is a function of the rows alone, so builds in one go and in many steps agree.
"""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.catalogue import DUPLICATES
from schemas.manifest import PATCH_SIZE

# Of 64 bits. A hash has as many ones as zeros, so two differ in an even number. Of photographs,
# compression, half the size or more light change 0 to 6, other photographs differ in 26 and more.
# Patches have less in them to tell them apart.
MOST = {"photograph": 6, "lr": 4, "hr": 4}


def find_duplicates(catalogue: pa.Table, patches: pa.Table) -> pa.Table:
    """The table DUPLICATES of a manifest.

    catalogue: columns of IMAGES. patches: role, rank, patch_id and phash of all rows, or less:
    where there are no hashes, there are no duplicates.
    """
    tables = [DUPLICATES.empty_table()]
    if "phash" in catalogue.schema.names:
        used = catalogue.filter(pc.is_in(catalogue["status"], pa.array(["ok", "no_patches"])))
        pixels = pc.multiply(used["width"].cast(pa.int64()), used["height"])
        used = used.append_column("smaller", pc.negate(pixels))
        order = [("smaller", "ascending"), ("path", "ascending")]
        tables.append(_table("photograph", used["image_id"], used, order))
    if {"role", "rank", "patch_id", "phash"} <= {*patches.schema.names}:
        order = [("rank", "ascending"), ("patch_id", "ascending")]
        for role in PATCH_SIZE:
            rows = patches.filter(pc.equal(patches["role"], role))
            tables.append(_table(role, rows["patch_id"], rows, order))
    return pa.concat_tables(tables)


def _table(
    kind: str, ids: pa.ChunkedArray, rows: pa.Table, order: list[tuple[str, str]]
) -> pa.Table:
    """rows: those that ids name, with phash. order: who comes first is kept."""
    places = pc.sort_indices(rows, sort_keys=order)
    places = places.filter(pc.is_valid(rows["phash"].take(places)))
    ids, digits = ids.take(places), rows["phash"].take(places)
    hashes = np.array([int(text, 16) for text in digits.to_pylist()], np.uint64)
    kept = keep_first(hashes, MOST[kind])
    twice = np.flatnonzero(kept != np.arange(len(kept)))
    distance = np.bitwise_count(hashes[twice] ^ hashes[kept[twice]])
    columns = {
        "kind": pa.array([kind] * len(twice)),
        "id": ids.take(twice),
        "kept": ids.take(kept[twice]),
        "distance": pa.array(distance, pa.int32()),
    }
    return pa.table(columns).cast(DUPLICATES)


def keep_first(hashes: np.ndarray, most: int) -> np.ndarray:
    """For each of n hashes (uint64) the place of the one that is kept for it, n int64.

    In order: a hash is kept unless one kept before differs in at most `most` bits; then the nearest
    of these stands for it, the first of several.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they came
    owner = np.arange(len(order))
    near: dict[int, list[tuple[int, int]]] = {}
    for earlier, later, bits in zip(*_near_pairs(unique[order], most), strict=True):
        near.setdefault(later, []).append((bits, earlier))
    for later in sorted(near):
        if kept := [pair for pair in near[later] if owner[pair[1]] == pair[1]]:
            owner[later] = min(kept)[1]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    result: np.ndarray = first[order][owner[place[inverse]]]
    return result


def _near_pairs(hashes: np.ndarray, most: int) -> tuple[list[int], list[int], list[int]]:
    """All pairs of different hashes that differ in at most `most` bits: places (lower first), bits.

    Cut into most + 1 bands, two such hashes agree in a band (pigeonhole), so that only those of
    equal bands are compared: of n random ones n^2 / 2^13 for 4 bits, not n^2.
    """
    edges = np.linspace(0, 64, most + 2).astype(int).tolist()
    found = [np.empty((3, 0), np.int64)]
    for start, stop in itertools.pairwise(edges):
        band = (hashes >> np.uint64(start)) & np.uint64(2 ** (stop - start) - 1)
        order = np.argsort(band, kind="stable")
        band = band[order]
        step, left = 1, np.arange(len(band))
        while len(left := left[left + step < len(band)]):
            left = left[band[left] == band[left + step]]
            one, other = order[left], order[left + step]  # stable: one < other
            bits = np.bitwise_count(hashes[one] ^ hashes[other])
            near = bits <= most
            found.append(np.stack([one[near], other[near], bits[near]]))
            step += 1
    earlier, later, bits = np.unique(np.concatenate(found, axis=1), axis=1).tolist()
    return earlier, later, bits
