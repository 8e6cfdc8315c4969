"""The data contract: the columns of a manifest, once, and how it is written, checked and read.

A manifest is a folder of Parquet parts (or a single file, as SQL writes it) with one row per patch.
Beside it stands the image catalogue: one row per photograph found, also those not used.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import UserError

SCHEMA_VERSION = 1
METADATA_KEY = b"la-sr"
ROW_GROUP = 256  # rows: small enough to fetch a few patches without reading their neighbours

Role = Literal["lr", "hr"]
SCALE = 4
BESIDE = ("images.parquet", "duplicates.parquet", "card.md")  # see `beside`
PATCH_SIZE: dict[Role, int] = {"lr": 56, "hr": 224}  # pixels, section 4 of the paper
VALIDATION = 0.05  # of the photographs
WORDS_PER_PATCH = 24  # appendix F


def _column(name: str, type_: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, type_, metadata={"description": description})


PATCHES = pa.schema(
    [
        _column("patch_id", pa.string(), "same photograph, place, size and role: the same id"),
        _column("image_id", pa.string(), "sha256 of the photograph's bytes, hex"),
        _column("image_path", pa.string(), "POSIX path relative to the images root"),
        _column("image_width", pa.int32(), "pixels, after EXIF rotation"),
        _column("image_height", pa.int32(), "pixels, after EXIF rotation"),
        _column("role", pa.string(), "lr: from far away; hr: from nearby"),
        _column("x", pa.int32(), "left edge, pixels of the upright photograph"),
        _column("y", pa.int32(), "top edge, pixels of the upright photograph"),
        _column("size", pa.int32(), "side of the square, pixels"),
        _column("distance", pa.float32(), "box-filtered distance at the centre: 0 near, 1 far"),
        _column("rank", pa.int32(), "0 = farthest (lr) or nearest (hr) of this photograph"),
        _column("texture", pa.float32(), "mean gradient magnitude of the luma, luma in 0..1"),
        _column("strategy", pa.string(), "depth, random, overlap or inclusion (table 3)"),
        _column("depth_model", pa.string(), "name@hash of the weights, or name@built-in"),
        _column("caption_model", pa.string(), "name@hash of the weights, or name@built-in"),
        _column("caption", pa.string(), "the words, best first, joined with ', '"),
        _column("words", pa.list_(pa.string()), "the best words of the dictionary, best first"),
        _column("word_scores", pa.list_(pa.float32()), "cosine similarity of each, descending"),
        _column(
            "image",
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            "the patch as a lossless PNG (the Hugging Face Image convention)",
        ),
        # Below: columns that version 1 gained later, see OPTIONAL.
        _column("luma", pa.float32(), "mean luma (Rec. 601), 0 black .. 1 white"),
        _column("contrast", pa.float32(), "standard deviation of the luma, 0..0.5"),
        _column("shadows", pa.float32(), "share of pixels that are nearly black, 0..1"),
        _column("highlights", pa.float32(), "share of pixels that are nearly white, 0..1"),
        _column("sharpness", pa.float32(), "variance of the Laplacian of the luma, luma in 0..255"),
        _column("phash", pa.string(), "perceptual hash, 16 hex digits; null: nothing to compare"),
        _column("split", pa.string(), "train or val: see split_of"),
    ]
)
# Manifests from before these columns, and curated ones that left them out, can still be used.
OPTIONAL = frozenset(["luma", "contrast", "shadows", "highlights", "sharpness", "phash", "split"])

IMAGES = pa.schema(
    [
        _column("image_id", pa.string(), "sha256 of the photograph's bytes, hex; null if unread"),
        _column("path", pa.string(), "POSIX path relative to the images root"),
        _column("width", pa.int32(), "pixels, after EXIF rotation; null if undecoded"),
        _column("height", pa.int32(), "pixels, after EXIF rotation; null if undecoded"),
        _column("status", pa.string(), "ok, no_patches, too_small, too_large, unreadable, …"),
        _column("error", pa.string(), "why it was not used; null for ok"),
        _column("n_lr", pa.int32(), "lr patches in the manifest"),
        _column("n_hr", pa.int32(), "hr patches in the manifest"),
        _column("phash", pa.string(), "perceptual hash, 16 hex digits; null: nothing to compare"),
        _column("split", pa.string(), "train or val: see split_of; null if unread"),
    ]
)

DUPLICATES = pa.schema(
    [
        _column("kind", pa.string(), "photograph, lr or hr: what was compared with its like"),
        _column("id", pa.string(), "image_id or patch_id of the one that may be left out"),
        _column("kept", pa.string(), "image_id or patch_id of the one it looks like"),
        _column("distance", pa.int32(), "bits in which their perceptual hashes differ"),
    ]
)


class ManifestError(UserError):
    """A manifest that cannot be used as it is."""


@dataclass(frozen=True)
class Manifest:
    """A manifest that was found and whose columns were checked; no row is read yet."""

    path: Path
    files: tuple[Path, ...]  # the parts, sorted by name
    schema: pa.Schema
    metadata: dict[str, Any] = field(default_factory=dict)  # {} after SQL, which drops it

    @property
    def identity(self) -> str:
        """12 hex digits of its parts' names and sizes; a name carries what determined its rows."""
        states = [(file.name, file.stat().st_size) for file in self.files]
        return hashlib.sha256(repr(states).encode()).hexdigest()[:12]


def images_path(manifest: Path) -> Path:
    """Where the image catalogue of a manifest stands: beside it, see `beside`."""
    return manifest.with_name(beside(manifest.name, "images.parquet"))


def beside(manifest: str, name: str) -> str:
    """What a file is called that belongs to a manifest of that name and stands beside it.

    name: one of BESIDE. `patches.parquet` -> `images.parquet`; a manifest of any other name passes
    it on, so that two can share a folder: `mine.parquet` -> `mine.images.parquet`.
    """
    stem = manifest.removesuffix(".parquet")
    return name if stem == "patches" else f"{stem}.{name}"


def split_of(image_id: str) -> Literal["train", "val"]:
    """Which split a photograph and its patches belong to, from its bytes alone.

    image_id: sha256, hex. Its first 32 bits are as good as drawn: about VALIDATION of all
    photographs are `val`, and no photograph ever moves, whatever comes or goes beside it.
    """
    return "val" if int(image_id[:8], 16) < VALIDATION * 2**32 else "train"


def patch_id(image_id: str, role: Role, x: int, y: int, size: int) -> str:
    """32 hex digits that depend on nothing but the photograph's bytes and the patch's place."""
    return hashlib.sha256(f"{image_id}:{role}:{x}:{y}:{size}".encode()).hexdigest()[:32]


def file_metadata(parameters: dict[str, Any], dictionary_sha256: str) -> dict[str, Any]:
    """What every part says of itself (JSON under the key `la-sr`)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "parameters": parameters,
        "dictionary_sha256": dictionary_sha256,
    }


def encoded_metadata(schema: pa.Schema, metadata: dict[str, Any]) -> dict[bytes, bytes]:
    """A file's key-value metadata: ours, and what `datasets` needs to decode the pictures."""
    encoded = {METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()}
    if "image" in schema.names:
        encoded[b"huggingface"] = b'{"info": {"features": {"image": {"_type": "Image"}}}}'
    return encoded


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """pyarrow's writer with the manifest's encodings; `rows_to` writes rows of Python."""
    # PNGs are compressed already: packing them again costs time and gains nothing.
    plain = {"image.bytes"}
    return pq.ParquetWriter(
        path,
        schema,
        compression={leaf: "none" if leaf in plain else "zstd" for leaf in _leaves(schema)},
        use_dictionary=[leaf for leaf in _leaves(schema) if leaf not in plain],
    )


Row = dict[str, Any]


@contextlib.contextmanager
def rows_to(
    path: Path, schema: pa.Schema, metadata: dict[str, Any]
) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Write a Parquet file row by row, in place; yields what appends rows to it.

    Rows go to disk a row group at a time: memory holds one, about 15 MB of patches.
    """
    schema = schema.with_metadata(encoded_metadata(schema, metadata))
    waiting: list[Row] = []
    with parquet_writer(path, schema) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting.clear()

        def write(rows: Iterable[Row]) -> None:
            for row in rows:
                waiting.append(row)
                if len(waiting) == ROW_GROUP:
                    flush()

        yield write
        flush()


def _leaves(schema: pa.Schema, prefix: str = "") -> list[str]:
    """Parquet's column paths: `image.bytes`, `words.list.element`, …"""
    paths = []
    for column in schema:
        if pa.types.is_struct(column.type):
            paths += _leaves(pa.schema(list(column.type)), f"{prefix}{column.name}.")
        elif pa.types.is_list(column.type):
            paths.append(f"{prefix}{column.name}.list.element")
        else:
            paths.append(prefix + column.name)
    return paths


def open_manifest(path: Path | str, columns: Iterable[str] = PATCHES.names) -> Manifest:
    """Find a manifest's parts and check version, columns and types; reads footers only.

    path: a folder of parts or one Parquet file. columns: those the caller needs; of OPTIONAL ones
    that are missing nothing is said.
    Raises ManifestError: nothing there, not Parquet, another schema version, a column that is
    missing or of another type, parts that disagree.
    """
    path = Path(path)
    if in_storage := re.match(r"([a-z0-9+]+):/+(.*)", str(path)):
        address = "{}://{}".format(*in_storage.groups())  # pathlib made one slash of two
        raise ManifestError(
            f"{address}: a manifest is read from a disk of this machine; copy it first, say with"
            f" `aws s3 sync {address} data/{path.name}`"
        )
    if not path.exists():
        raise ManifestError(
            f"{path}: no manifest there; build one with"
            f" `python -m pipeline.run --images FOLDER --out {path}`"
        )
    # Readers of Parquet folders pass over names that begin with a dot or an underscore.
    names = path.glob("*.parquet") if path.is_dir() else [path]
    files = tuple(sorted(f for f in names if not f.name.startswith((".", "_"))))
    if not files:
        raise ManifestError(f"{path}: the folder holds no *.parquet part; build it again")
    first = _read_schema(files[0])
    metadata = _metadata_of(first, files[0])
    check_columns(first, columns, files[0])
    for file in files[1:]:
        schema = _read_schema(file)
        _metadata_of(schema, file)
        if not schema.remove_metadata().equals(first.remove_metadata()):
            raise ManifestError(
                f"{file}: its columns differ from those of {files[0].name}; parts of one manifest"
                " must agree: build it again"
            )
    return Manifest(path, files, first, metadata)


def _read_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ManifestError(
            f"{file}: not a readable Parquet file ({error}); build it again"
        ) from error


def _metadata_of(schema: pa.Schema, file: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    version = metadata.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"{file}: manifest of schema version {version}, this program reads version"
            f" {SCHEMA_VERSION}; build it again or use the program that wrote it"
        )
    return metadata


def check_columns(schema: pa.Schema, columns: Iterable[str], file: Path) -> None:
    for name in columns:
        if name not in schema.names:
            if name in OPTIONAL:
                continue
            raise ManifestError(
                f"{file}: column '{name}' is missing; keep it in the SELECT, or use SELECT *"
            )
        found, wanted = schema.field(name).type, PATCHES.field(name).type
        if _kind(found) != _kind(wanted):
            raise ManifestError(
                f"{file}: column '{name}' is {found}, expected {wanted}; keep the manifest's types"
            )


def _kind(type_: pa.DataType) -> Any:
    """A type up to width and layout: polars writes large_string, pandas float64, SQL int64."""
    if pa.types.is_struct(type_):
        return tuple((child.name, _kind(child.type)) for child in type_)
    for is_list in (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view):
        if is_list(type_):
            return ("list", _kind(type_.value_type))
    for kind, members in {
        "integer": (pa.types.is_integer,),
        "float": (pa.types.is_floating,),
        "string": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        "binary": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    }.items():
        if any(member(type_) for member in members):
            return kind
    return _kind(type_.value_type) if pa.types.is_dictionary(type_) else str(type_)
