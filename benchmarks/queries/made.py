"""A manifest of any number of rows, written as builds write them, whose pixels are a stand-in.

Parts of 256 photographs, 16 patches each, in row groups of 256 rows, with the encodings, checksums
and digests of `schemas.parquet`. All columns vary as in a build; only the pixels and the captions,
which no ready question reads, are short and the same in each row, so that ten million rows take
3 GB of disk. They still separate the columns before and after them by more bytes than readers of
object storage bridge.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.stages.captions import DICTIONARY, read_dictionary
from schemas.catalogue import DUPLICATES, IMAGES, beside
from schemas.manifest import PATCHES, WORDS_PER_PATCH, digest_of, file_metadata, part_name
from schemas.parquet import ROW_GROUP, encoded_metadata, table_writer, write_table

PHOTOGRAPHS = 256  # of a part
K = 8  # patches of each role and photograph
POOL = 5_000  # captions that are drawn from
COPIES = 0.05  # share of patches that look like the one before
UNUSED = 0.08  # share of the photographs found that gave nothing


def make_manifest(path: Path, rows: int, seed: int = 0) -> None:
    """Write a manifest of at least `rows` rows, its catalogue and its near-duplicates."""
    path.mkdir(parents=True)
    metadata = file_metadata({"images": ["photographs"], "profile": "default"}, "0" * 64)
    rng = np.random.default_rng(seed)
    words = _captions(rng)
    catalogues, duplicates = [], []
    for number in range(-(-rows // (PHOTOGRAPHS * 2 * K))):
        part, catalogue, alike = _part(rng, number, words)
        _write_part(path, part, metadata)
        catalogues.append(catalogue)
        duplicates.append(alike)
    catalogue = pa.concat_tables([*catalogues, _unused(rng, len(catalogues))]).sort_by("path")
    write_table(path.parent / beside(path.name, "images.parquet"), catalogue, metadata)
    found = pa.concat_tables([*duplicates, _same_photographs(rng, catalogue)])
    write_table(path.parent / beside(path.name, "duplicates.parquet"), found, metadata)


def _write_part(folder: Path, part: pa.Table, metadata: dict[str, Any]) -> None:
    schema = PATCHES.with_metadata(encoded_metadata(PATCHES, metadata))
    temporary = folder / ".part.tmp"
    with table_writer(temporary, schema) as write:
        for start in range(0, len(part), ROW_GROUP):
            write(part.slice(start, ROW_GROUP).cast(schema))
    digest = digest_of(temporary)
    assert digest
    temporary.rename(folder / f"{part_name(digest.content)}.parquet")


def _captions(rng: np.random.Generator) -> tuple[pa.Array, np.ndarray]:
    """The dictionary, and POOL x 24 of its numbers; frequencies fall as 1 / rank."""
    words = read_dictionary(DICTIONARY)
    chance = np.log(1 / np.arange(10, len(words) + 10))
    drawn = [
        np.argsort(-(chance + rng.gumbel(size=(1000, len(words)))), axis=1)[:, :WORDS_PER_PATCH]
        for _ in range(POOL // 1000)
    ]
    return pa.array(rng.permutation(words).tolist()), np.concatenate(drawn)


def _part(
    rng: np.random.Generator, number: int, words: tuple[pa.Array, np.ndarray]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The rows of a part, of its photographs in the catalogue, and of its near-duplicates."""
    n = PHOTOGRAPHS * 2 * K
    photographs: dict[str, Any] = {
        "image_id": _hex(rng, PHOTOGRAPHS, 32),
        "path": [f"album-{number:05}/DSC_{i:04}.jpg" for i in range(PHOTOGRAPHS)],
        "width": rng.choice([1020, 2040, 4032], PHOTOGRAPHS),
        "split": np.where(rng.random(PHOTOGRAPHS) < 0.05, "val", "train"),
        "phash": _hex(rng, PHOTOGRAPHS, 8),
    }
    owner = np.repeat(np.arange(PHOTOGRAPHS), 2 * K)
    far = np.tile(np.repeat([True, False], K), PHOTOGRAPHS)
    size = np.where(far, 56, 224)
    width = photographs["width"][owner]
    ids, hashes = _hex(rng, n, 16), _hex(rng, n, 8)
    alike = np.flatnonzero((rng.random(n) < COPIES) & (np.arange(n) % K > 0))
    hashes[alike] = hashes[alike - 1]
    sky = (rng.random(PHOTOGRAPHS) < 0.2)[owner]
    distance = np.where(far, rng.uniform(0.6, 1, n), rng.uniform(0, 0.4, n))
    sharpness = np.exp(rng.normal(np.where(far, 5.5, 6), 1.2))
    pool, numbers = words
    chosen = numbers[rng.integers(len(numbers), size=n)]
    columns = {
        "patch_id": ids,
        "image_id": photographs["image_id"][owner],
        "image_path": np.array(photographs["path"])[owner],
        "image_width": width,
        "image_height": width * 2 // 3,
        "role": np.where(far, "lr", "hr"),
        "x": rng.integers(0, width - size),
        "y": rng.integers(0, width * 2 // 3 - size),
        "size": size,
        "distance": np.where(far & sky, 1.0, distance),
        "rank": np.tile(np.arange(K), 2 * PHOTOGRAPHS),
        "texture": rng.gamma(1.5, 0.02, n),
        **{name: _same(text, n) for name, text in MODELS.items()},
        "caption": _same("as the words", n),
        "words": _lists(pool.take(pa.array(chosen.ravel()))),
        "word_scores": _lists(
            pa.array(
                np.sort(rng.normal(0.21, 0.02, (n, WORDS_PER_PATCH)))[:, ::-1].ravel().round(4)
            )
        ),
        "image": pa.StructArray.from_arrays(
            [pa.array([_png()] * n, pa.binary()), pa.array([f"{one}.png" for one in ids])],
            ["bytes", "path"],
        ),
        "luma": rng.beta(2, 2, n),
        "contrast": rng.gamma(2, 0.05, n),
        "shadows": np.where(rng.random(n) < 0.9, 0, rng.random(n)),
        "highlights": np.where(rng.random(n) < 0.9, 0, rng.random(n)),
        "sharpness": sharpness,
        "phash": hashes,
        "split": photographs["split"][owner],
        "sharpness_56": np.where(far, sharpness, sharpness * 2),
        "colour_a": rng.normal(0, 8, n),
        "colour_b": rng.normal(5, 12, n),
    }
    arrays = [pa.array(columns[f.name]).cast(f.type) for f in PATCHES]
    duplicates = {
        "kind": np.where(far[alike], "lr", "hr"),
        "id": ids[alike],
        "kept": ids[alike - 1],
        "distance": rng.choice([0, 2, 4], len(alike)),
    }
    return (
        pa.table(arrays, PATCHES),
        _catalogue(photographs | {"status": "ok", "n_lr": K, "n_hr": K}, PHOTOGRAPHS),
        pa.table({f.name: pa.array(duplicates[f.name]).cast(f.type) for f in DUPLICATES}),
    )


MODELS = {
    "strategy": "depth",
    "depth_model": "depth-anything-v2-small@0123456789ab",
    "caption_model": "clip-vit-l-14@0123456789ab",
}


def _catalogue(columns: dict[str, Any], n: int) -> pa.Table:
    """Rows of the catalogue. columns: arrays, or one value for all rows; others are null."""
    if "width" in columns:
        columns = columns | {"height": columns["width"] * 2 // 3}
    filled = [columns.get(f.name) for f in IMAGES]
    arrays = [
        pa.nulls(n, f.type) if value is None
        else (pa.array(value) if len(np.shape(value)) else pa.array([value] * n)).cast(f.type)
        for f, value in zip(IMAGES, filled, strict=True)
    ]  # fmt: skip
    return pa.table(arrays, IMAGES)


def _unused(rng: np.random.Generator, parts: int) -> pa.Table:
    """Photographs that gave nothing."""
    n = round(parts * PHOTOGRAPHS * UNUSED)
    reasons = {"too_small": "200x150: smaller than a near patch", "unreadable": "cut short",
               "no_patches": "no patch has enough texture"}  # fmt: skip
    status = rng.choice(list(reasons), n)
    return _catalogue(
        {
            "image_id": _hex(rng, n, 32),
            "path": [f"more/IMG_{i:07}.jpg" for i in range(n)],
            "width": rng.integers(100, 2000, n),
            "status": status,
            "error": [reasons[one] for one in status],
            "n_lr": 0,
            "n_hr": 0,
            "split": "train",
        },
        n,
    )


def _same_photographs(rng: np.random.Generator, catalogue: pa.Table) -> pa.Table:
    """One photograph in fifty looks like another."""
    ids = catalogue["image_id"].to_numpy()
    chosen = rng.permutation(len(ids))[: len(ids) // 50 * 2].reshape(2, -1)
    columns = {
        "kind": _same("photograph", chosen.shape[1]),
        "id": ids[chosen[0]],
        "kept": ids[chosen[1]],
        "distance": rng.choice([0, 2, 4, 6], chosen.shape[1]),
    }
    return pa.table({f.name: pa.array(columns[f.name]).cast(f.type) for f in DUPLICATES})


def _hex(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Hex digits of random numbers of `size` bytes."""
    digits = rng.bytes(n * size).hex()
    return np.array([digits[i : i + 2 * size] for i in range(0, len(digits), 2 * size)])


def _lists(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(
        pa.array(range(0, len(values) + 1, WORDS_PER_PATCH), pa.int32()), values
    )


def _same(text: str, n: int) -> pa.Array:
    return pa.array([text] * n)


def _png() -> bytes:
    with io.BytesIO() as buffer:
        Image.new("L", (56, 56), 127).save(buffer, "PNG")
        return buffer.getvalue()
