"""The manifest: its columns and ids, and how one is opened and checked.

A manifest is a folder of Parquet parts, or a single Parquet file as SQL writes it. It has one row
per patch. The files beside it are described in `schemas.catalogue`.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.address import address_of
from schemas.columns import fits
from schemas.current import Current, current_files
from schemas.digest import Damaged, ParquetDigest, parquet_digest
from schemas.errors import UserError
from schemas.parquet import METADATA_KEY, decoded_metadata
from schemas.parts import PartFile, content_digest, open_part, readable, size_of

SCHEMA_VERSION = 1

Role = Literal["lr", "hr"]
SCALE = 4
PATCH_SIZE: dict[Role, int] = {"lr": 56, "hr": 224}  # pixels, section 4 of the paper
VALIDATION = 0.05  # share of the photographs whose split is `val`
WORDS_PER_PATCH = 24  # appendix F


def column(name: str, type_: pa.DataType, description: str) -> pa.Field:
    """A column that carries its description in the file."""
    return pa.field(name, type_, metadata={"description": description})


PATCHES = pa.schema(
    [
        column("patch_id", pa.string(), "same photograph, place, size and role: the same id"),
        column("image_id", pa.string(), "sha256 of the photograph's bytes, hex"),
        column("image_path", pa.string(), "POSIX path relative to the images root"),
        column("image_width", pa.int32(), "pixels, after EXIF rotation"),
        column("image_height", pa.int32(), "pixels, after EXIF rotation"),
        column("role", pa.string(), "lr: from far away; hr: from nearby"),
        column("x", pa.int32(), "left edge, pixels of the upright photograph"),
        column("y", pa.int32(), "top edge, pixels of the upright photograph"),
        column("size", pa.int32(), "side of the square, pixels"),
        column("distance", pa.float32(), "box-filtered distance at the centre: 0 near, 1 far"),
        column("rank", pa.int32(), "0 = farthest (lr) or nearest (hr) of this photograph"),
        column("texture", pa.float32(), "mean gradient magnitude of the luma, luma in 0..1"),
        column("strategy", pa.string(), "depth, random, overlap or inclusion (table 3)"),
        column("depth_model", pa.string(), "name@hash of the weights, or name@built-in"),
        column("caption_model", pa.string(), "name@hash of the weights, or name@built-in"),
        column("caption", pa.string(), "the words, best first, joined with ', '"),
        column("words", pa.list_(pa.string()), "the best words of the dictionary, best first"),
        column("word_scores", pa.list_(pa.float32()), "cosine similarity of each, descending"),
        column(
            "image",
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            "the patch as a lossless PNG (the Hugging Face Image convention)",
        ),
        # Columns added later to version 1: see OPTIONAL.
        column("luma", pa.float32(), "mean luma (Rec. 601), 0 black .. 1 white"),
        column("contrast", pa.float32(), "standard deviation of the luma, 0..0.5"),
        column("shadows", pa.float32(), "share of pixels that are nearly black, 0..1"),
        column("highlights", pa.float32(), "share of pixels that are nearly white, 0..1"),
        column("sharpness", pa.float32(), "variance of the Laplacian of the luma, luma in 0..255"),
        column("phash", pa.string(), "perceptual hash, 16 hex digits; null: nothing to compare"),
        column("split", pa.string(), "train or val: see split_of"),
        column("sharpness_56", pa.float32(), "sharpness of the patch shrunk to 56 x 56 by area"),
        column("colour_a", pa.float32(), "mean a* of CIELAB: below 0 green, above red"),
        column("colour_b", pa.float32(), "mean b* of CIELAB: below 0 blue, above yellow"),
    ]
)
# Older manifests lack these columns and curated ones may leave them out; both are accepted.
OPTIONAL = frozenset(PATCHES.names[PATCHES.names.index("luma") :])

Row = dict[str, Any]

FORMER_KEY = "la-sr.former"  # metadata of a file: name and size before version 0.2, in JSON
_NAMED = re.compile(r"part-[0-9a-f]{32}\.parquet")  # see `part_name`; earlier names are shorter


class ManifestError(UserError):
    """A manifest that cannot be used as it is."""


class DamagedError(ManifestError):
    """A file of a manifest whose bytes, or some of them, are not those that were written."""

    def __init__(self, file: PartFile, error: Exception, what: str = ""):
        """what: the part of the file that cannot be used, if it is not all of it."""
        where = f"{file}, {what}" if what else str(file)
        reason = " ".join(str(error).split())[:300]
        super().__init__(
            f"{where}: damaged, or not a readable Parquet file ({reason})",
            "make it again: a part by repeating its `lasr build` with --verify, a saved file by"
            " repeating its `lasr query`",
        )
        self.file = file


@dataclass(frozen=True)
class Manifest:
    """A manifest whose files were found and whose columns were checked. No row has been read."""

    where: Path | str  # a path, or the address of one in storage, for messages
    parts: tuple[PartFile, ...]  # its files, sorted by name
    schema: pa.Schema
    metadata: dict[str, Any] = field(default_factory=dict)  # {} if SQL wrote it: SQL drops it
    current: Current | None = None  # names the files that were published together

    @property
    def path(self) -> Path:
        """The path of one on a local disk. Raises ManifestError: it is in storage."""
        if isinstance(self.where, str):
            raise not_local(self.where)
        return self.where

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of one on a local disk. Raises ManifestError: it is in storage."""
        files = tuple(file for file in self.parts if isinstance(file, Path))
        if len(files) < len(self.parts):
            raise not_local(str(self.where))
        return files

    @cached_property
    def identity(self) -> str:
        """32 hex digits from the content of the files: other rows, other identity.

        Files of this project hold a digest of themselves, so that only their footers are read. Of
        others (SQL's COPY, earlier versions) all bytes are: a second per GB, more on a slow disk.
        """
        with ThreadPoolExecutor(4) as executor:
            digests = list(executor.map(_content_digest, self.parts))
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]

    @property
    def former_identity(self) -> str:
        """The identity in versions before 0.2: 12 digits, from names and sizes of the parts.

        Parts that were renamed since then carry the name and size they had.
        """
        states = []
        for file in self.parts:
            with damage_named(file):
                more = pq.read_metadata(readable(file)).metadata or {}
                former = json.loads(more.get(FORMER_KEY.encode(), b"null"))
                states.append(tuple(former or (file.name, size_of(file))))
        return hashlib.sha256(repr(sorted(states)).encode()).hexdigest()[:12]


@contextlib.contextmanager
def damage_named(file: PartFile, what: str = "") -> Iterator[None]:
    """Turn the errors of a damaged file into a DamagedError. what: see there."""
    try:
        yield
    except (Damaged, pa.ArrowException, OSError) as error:
        raise DamagedError(file, error, what) from error


def split_of(image_id: str) -> Literal["train", "val"]:
    """Return the split of a photograph and all its patches. It depends on its bytes alone.

    image_id: sha256 in hex. Its first 32 bits are uniformly distributed, so about VALIDATION of all
    photographs are `val`. Adding or removing other photographs never changes a photograph's split.
    """
    return "val" if int(image_id[:8], 16) < VALIDATION * 2**32 else "train"


def patch_id(image_id: str, role: Role, x: int, y: int, size: int) -> str:
    """Return 32 hex digits computed from the photograph's id, the role and the square alone."""
    return hashlib.sha256(f"{image_id}:{role}:{x}:{y}:{size}".encode()).hexdigest()[:32]


def part_name(digest: str) -> str:
    """Return the name of a part from its digest: other content, other name."""
    return f"part-{digest[:32]}"


def file_metadata(parameters: dict[str, Any], dictionary_sha256: str) -> dict[str, Any]:
    """Return the metadata that every part of a manifest carries."""
    return {
        "schema_version": SCHEMA_VERSION,
        "parameters": parameters,
        "dictionary_sha256": dictionary_sha256,
    }


def open_manifest(path: Path | str, columns: Iterable[str] = PATCHES.names) -> Manifest:
    """Find the parts of a manifest and check version, columns and types. Reads footers only.

    path: a folder of parts, or one Parquet file. columns: those the caller needs; missing ones are
    accepted if they are OPTIONAL.
    Raises ManifestError if there is no manifest, a file is not Parquet or has another schema
    version, a column is missing or has another type, or parts differ in their columns.
    """
    path = Path(path)
    if address := address_of(path):
        raise not_local(address)
    files, current = find_files(path)
    return checked(path, files, columns, current)


def not_local(address: str) -> ManifestError:
    """The error of a command that cannot read storage."""
    name = address.rstrip("/").rsplit("/", 1)[-1]
    return ManifestError(
        f"{address}: this command reads manifests from a local disk (`lasr train`, `query`,"
        " `report`, `compare`, `features` and `degradations` read it where it is)",
        f"copy it first, for example with `aws s3 sync {address} data/{name}`",
    )


def find_files(path: Path) -> tuple[tuple[Path, ...], Current | None]:
    """The files of a manifest on a local disk, sorted, and what says that they are current, if any.

    Raises ManifestError.
    """
    if not path.exists():
        raise ManifestError(
            f"{path}: no manifest there",
            f"build one with `lasr build --images FOLDER --out {path}`",
        )
    if not path.is_dir():
        return (path,), None
    files, current = current_files(path)
    for folder in sorted(path.glob("*=*/")):
        if next(folder.rglob("*.parquet"), None):
            raise partitioned(path, folder.name)
    if not files:
        raise no_parts(path)
    return files, current


def no_parts(where: Path | str) -> ManifestError:
    """The error of a folder that holds no part."""
    fix = "check the address, or build it again"
    return ManifestError(f"{where}: the folder holds no *.parquet part", fix)


def checked(
    where: Path | str,
    files: tuple[PartFile, ...],
    columns: Iterable[str] = PATCHES.names,
    current: Current | None = None,
) -> Manifest:
    """The manifest that consists of `files`, at least one. Raises as `open_manifest`.

    current: what says that these are its files, if anything does.
    """
    columns = tuple(columns)
    first = _read_schema(files[0])
    metadata = _checked_metadata(first, files[0])
    check_columns(first, columns, files[0])
    for file in files[1:]:
        schema = _read_schema(file)
        _checked_metadata(schema, file)
        if not schema.equals(first):
            raise ManifestError(
                f"{file}: its columns differ from those of {files[0].name}", "build it again"
            )
    return Manifest(where, files, first, metadata, current)


def partitioned(where: Path | str, folder: str) -> ManifestError:
    """The error where parts are in folders such as `role=lr`, whose names hold values."""
    sql = f"COPY (FROM read_parquet('{where}/**/*.parquet', hive_partitioning = true))"
    return ManifestError(
        f"{where}: is partitioned into folders such as {folder}, and rows there lack the column"
        f" '{folder.partition('=')[0]}'",
        f"write it as one file, in DuckDB: {sql} TO 'one.parquet' (ROW_GROUP_SIZE 256)",
    )


def _read_schema(file: PartFile) -> pa.Schema:
    """The columns of a file, after a check of its footer."""
    with damage_named(file):
        digest = digest_of(file)
        if _NAMED.fullmatch(file.name) and not (
            digest and file.name == f"{part_name(digest.content)}.parquet"
        ):
            raise Damaged("it is not what its name says")
        return pq.read_schema(readable(file))


def digest_of(file: PartFile) -> ParquetDigest | None:
    """Check the footer of a file; its digests, or None if it has none. Raises DamagedError."""
    with damage_named(file), open_part(file) as content:
        return parquet_digest(content)


def _content_digest(file: PartFile) -> str:
    with damage_named(file):
        return content_digest(file)


def _checked_metadata(schema: pa.Schema, file: PartFile) -> dict[str, Any]:
    try:
        metadata = decoded_metadata(schema)
        if not isinstance(metadata.get("parameters", {}), dict):
            raise ValueError("its parameters are no JSON object")
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{file}: its metadata '{METADATA_KEY.decode()}' cannot be read ({error})",
            "build the manifest again",
        ) from error
    version = metadata.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"{file}: manifest of schema version {version}; this program reads version"
            f" {SCHEMA_VERSION}",
            "build it again, or use the program that wrote it",
        )
    return metadata


def check_columns(schema: pa.Schema, columns: Iterable[str], file: PartFile) -> None:
    """Raises ManifestError if a column is missing, unless it is OPTIONAL, or has another type."""
    for name in columns:
        if name not in schema.names:
            if name in OPTIONAL:
                continue
            raise ManifestError(
                f"{file}: column '{name}' is missing", "keep it in the SELECT, or use SELECT *"
            )
        if len(schema.get_all_field_indices(name)) > 1:
            raise ManifestError(f"{file}: two columns are named '{name}'", "rename one of them")
        found, wanted = schema.field(name).type, PATCHES.field(name).type
        if not fits(found, wanted):
            raise ManifestError(
                f"{file}: column '{name}' is {found}, expected {wanted}",
                "keep the types of the manifest",
            )
