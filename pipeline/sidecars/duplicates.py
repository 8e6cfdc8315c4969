"""Near-duplicate photographs and patches, found by their perceptual hashes.

Each near-duplicate is listed with the item that is preferred to it. Without the listed items, any
two hashes differ in more than MAX_BITS bits. Larger photographs are preferred, and patches of a
better rank; photographs, lr and hr patches are compared separately. The table depends on the rows
alone, so it is the same whether a manifest was built at once or in several steps.
"""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.catalogue import DUPLICATES
from schemas.manifest import PATCH_SIZE

# Of 64 bits. A hash has as many ones as zeros, so distances are even. Compression, half the size or
# more light change 0 to 6 bits of a photograph's hash; hashes of different photographs differ in 26
# and more. Patches contain less to tell them apart.
MAX_BITS = {"photograph": 6, "lr": 4, "hr": 4}


def find_duplicates(catalogue: pa.Table, patches: pa.Table) -> pa.Table:
    """Return the table DUPLICATES of a manifest.

    catalogue: columns of IMAGES. patches: role, rank, patch_id and phash of all rows. Where these
    columns are missing, as in manifests from before there were hashes, nothing is found.
    """
    tables = [DUPLICATES.empty_table()]
    if "phash" in catalogue.schema.names:
        used = catalogue.filter(pc.is_in(catalogue["status"], pa.array(["ok", "no_patches"])))
        pixels = pc.multiply(used["width"].cast(pa.int64()), used["height"])
        used = used.append_column("smaller", pc.negate(pixels))
        order = [("smaller", "ascending"), ("path", "ascending")]
        tables.append(_duplicates("photograph", used["image_id"], used, order))
    if {"role", "rank", "patch_id", "phash"} <= {*patches.schema.names}:
        order = [("rank", "ascending"), ("patch_id", "ascending")]
        for role in PATCH_SIZE:
            rows = patches.filter(pc.equal(patches["role"], role))
            tables.append(_duplicates(role, rows["patch_id"], rows, order))
    return pa.concat_tables(tables)


def _duplicates(
    kind: str, ids: pa.ChunkedArray, rows: pa.Table, order: list[tuple[str, str]]
) -> pa.Table:
    """The near-duplicates among rows of one kind. order: sort keys, the preferred row first."""
    indices = pc.sort_indices(rows, sort_keys=order)
    indices = indices.filter(pc.is_valid(rows["phash"].take(indices)))
    ids, digits = ids.take(indices), rows["phash"].take(indices)
    hashes = np.array([int(text, 16) for text in digits.to_pylist()], np.uint64)
    preferred = first_alike(hashes, MAX_BITS[kind])
    alike = np.flatnonzero(preferred != np.arange(len(preferred)))
    distance = np.bitwise_count(hashes[alike] ^ hashes[preferred[alike]])
    columns = {
        "kind": pa.array([kind] * len(alike)),
        "id": ids.take(alike),
        "kept": ids.take(preferred[alike]),
        "distance": pa.array(distance, pa.int32()),
    }
    return pa.table(columns).cast(DUPLICATES)


def first_alike(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """Return for each hash the index of the hash it duplicates, or its own index.

    hashes: n uint64, in order of preference. Returns n int64. A hash is a duplicate if an earlier
    hash that is not one itself differs in at most `max_bits` bits; of several the nearest counts,
    then the first.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in the order of their first occurrence
    owner = np.arange(len(order))
    near: dict[int, list[tuple[int, int]]] = {}
    for earlier, later, bits in zip(*_near_pairs(unique[order], max_bits), strict=True):
        near.setdefault(later, []).append((bits, earlier))
    for later in sorted(near):
        if originals := [pair for pair in near[later] if owner[pair[1]] == pair[1]]:
            owner[later] = min(originals)[1]
    index = np.empty_like(order)
    index[order] = np.arange(len(order))
    result: np.ndarray = first[order][owner[index[inverse]]]
    return result


def bands(max_bits: int) -> list[tuple[int, int]]:
    """First bit, and bit after the last, of the bands into which hashes are cut."""
    edges = np.linspace(0, 64, max_bits + 2).astype(int).tolist()
    return list(itertools.pairwise(edges))


def _near_pairs(hashes: np.ndarray, max_bits: int) -> tuple[list[int], list[int], list[int]]:
    """All pairs of different hashes that differ in at most `max_bits` bits.

    hashes: distinct. Returns the lower index, the higher index and the number of bits of each pair.

    The bits are cut into max_bits + 1 bands. Two such hashes agree in at least one band (pigeonhole
    principle), so only hashes with an equal band are compared: n^2 / 2^13 of n random ones at 4
    bits instead of n^2.
    """
    found = [np.empty((3, 0), np.int64)]
    for start, stop in bands(max_bits):
        band = (hashes >> np.uint64(start)) & np.uint64(2 ** (stop - start) - 1)
        order = np.argsort(band, kind="stable")
        band = band[order]
        step, left = 1, np.arange(len(band))
        while len(left := left[left + step < len(band)]):
            left = left[band[left] == band[left + step]]
            one, other = order[left], order[left + step]  # one < other: the sort is stable
            bits = np.bitwise_count(hashes[one] ^ hashes[other])
            near = bits <= max_bits
            found.append(np.stack([one[near], other[near], bits[near]]))
            step += 1
    earlier, later, bits = np.unique(np.concatenate(found, axis=1), axis=1).tolist()
    return earlier, later, bits
