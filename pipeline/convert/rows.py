"""The patches of a manifest in order, by split and role. Pixels are read a few rows at a time."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lasr.errors import UserError
from schemas.columns import convert
from schemas.manifest import PATCH_SIZE, PATCHES, Manifest, damage_named, split_of

PNG = b"\x89PNG\r\n\x1a\n"
SPLITS = ("train", "val")
_SMALL = ("patch_id", "image_id", "role", "split")
_BATCH = 64  # rows in memory
_KEY = re.compile(r"[0-9A-Za-z_-]{1,100}")
NO_GROUP = -1

Group = tuple[str, str]  # split and role


@dataclass(frozen=True)
class Patch:
    """A row. number: among those of its split and role, from 0. about: columns but the picture."""

    group: Group
    number: int
    key: str  # of letters, digits, - and _; unique in its manifest
    png: bytes
    about: dict[str, Any]

    @property
    def caption(self) -> str:
        """The words, or an empty text."""
        return str(self.about.get("caption") or "")


@dataclass(frozen=True)
class Rows:
    """Which rows of a manifest take part: for each row its group and its number in that."""

    manifest: Manifest
    groups: tuple[Group, ...]
    group: np.ndarray  # int8, position in `groups`; NO_GROUP: left out
    number: np.ndarray  # int64
    left_out: int  # rows that are neither 'lr' nor 'hr'

    def count(self, group: Group) -> int:
        """Patches of a split and role."""
        return int((self.group == self.groups.index(group)).sum())

    def read(self, wanted: Callable[[Group, np.ndarray], np.ndarray]) -> Iterator[Patch]:
        """Read patches in the manifest's order. Row groups without a wanted one are not read.

        wanted: for a group and numbers, which of them. Raises DamagedError.
        """
        take = np.zeros(len(self.group), bool)
        for position, group in enumerate(self.groups):
            own = np.flatnonzero(self.group == position)
            take[own] = wanted(group, self.number[own])
        for row, values in self._values(take):
            group = self.groups[self.group[row]]
            image = values.pop("image", None) or {}
            about = {name: value for name, value in values.items() if _is_known(value)}
            key = key_of(about.get("patch_id"), row)
            yield Patch(group, int(self.number[row]), key, image.get("bytes") or b"", about)

    def about(self) -> Iterator[tuple[Group, str, dict[str, Any]]]:
        """Group, key and columns of all patches, without pixels."""
        names = [name for name in self.manifest.schema.names if name != "image"]
        for row, values in self._values(self.group != NO_GROUP, names):
            about = {name: value for name, value in values.items() if _is_known(value)}
            yield self.groups[self.group[row]], key_of(about.get("patch_id"), row), about

    def _values(
        self, take: np.ndarray, names: list[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        start = 0
        for file in self.manifest.files:
            with damage_named(file), _opened(file) as parquet:
                for number in range(parquet.num_row_groups):
                    end = start + parquet.metadata.row_group(number).num_rows
                    if take[start:end].any():
                        for batch in parquet.iter_batches(
                            _BATCH, row_groups=[number], columns=names
                        ):
                            own = np.flatnonzero(take[start : start + len(batch)])
                            for at, row in zip(own, _rows(batch, own), strict=True):
                                yield start + int(at), row
                            start += len(batch)
                    start = end


def plan(manifest: Manifest, splits: tuple[str, ...], roles: tuple[str, ...]) -> Rows:
    """Number the patches of some splits and roles. Reads small columns only.

    Raises UserError: a patch occurs twice, none is left; DamagedError.
    """
    groups = tuple((split, role) for split in splits for role in roles)
    found, hashes, left_out = [np.zeros(0, np.int8)], [np.zeros(0, np.uint64)], 0
    columns = [name for name in _SMALL if name in manifest.schema.names]
    for file in manifest.files:
        with damage_named(file), _opened(file) as parquet:
            for batch in parquet.iter_batches(4096, columns=columns):
                rows = _rows(batch, np.arange(len(batch)))
                own = [_group(row, groups) for row in rows]
                left_out += sum(row["role"] not in PATCH_SIZE for row in rows)
                found.append(np.array(own, np.int8))
                keys = [row["patch_id"] for row in rows if row.get("patch_id")]
                hashes.append(np.array([_hash(key) for key in keys], np.uint64))
    all_hashes = np.concatenate(hashes)
    if len(np.unique(all_hashes)) < len(all_hashes):
        raise UserError(
            f"{manifest.path}: holds a patch more than once",
            "save it with each patch_id once: SELECT patch_id FROM …",
        )
    group = np.concatenate(found)
    number = np.zeros(len(group), np.int64)
    for position in range(len(groups)):
        own_rows = group == position
        number[own_rows] = np.arange(own_rows.sum())
    if not (group != NO_GROUP).any():
        raise UserError(f"{manifest.path}: holds no such patch", "choose another --split or --role")
    return Rows(manifest, groups, group, number, left_out)


def key_of(patch_id: object, row: int) -> str:
    """A name for files: the patch_id, or the row's number where a curated manifest has none."""
    if not patch_id:
        return f"{row:09}"
    text = str(patch_id)
    return text if _KEY.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:32]


def _opened(file: Any) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)


def _rows(batch: pa.RecordBatch, rows: np.ndarray) -> list[dict[str, Any]]:
    taken = batch.take(pa.array(rows))
    found: list[dict[str, Any]] = convert(taken, PATCHES).to_pylist()
    return found


def _group(row: dict[str, Any], groups: tuple[Group, ...]) -> int:
    split = row.get("split") or split_of(str(row["image_id"]))
    group = (split, row["role"])
    return groups.index(group) if group in groups else NO_GROUP


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
