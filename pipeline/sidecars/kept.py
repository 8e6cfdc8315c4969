"""Near-duplicates of a build, from what its work folder remembers of the last one.

    near-photograph.parquet, near-lr.parquet, near-hr.parquet    `Items` of each kind

Their metadata names the parts whose rows they hold, in the order of the column `file`. Parts are
named by their content: those of an earlier build need no reading. A file that is missing, damaged
or of another version counts as nothing known, and then every hash is compared with every other.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sidecars.duplicates import MAX_BITS
from pipeline.sidecars.index import ITEMS, Items, empty, updated
from pipeline.storage import StoragePath, read_table, read_whole_table, reason, scratch
from schemas.catalogue import DUPLICATES
from schemas.manifest import PATCH_SIZE
from schemas.parquet import decoded_metadata, write_table

log = logging.getLogger(__name__)

KEPT = tuple(f"near-{kind}.parquet" for kind in MAX_BITS)
_VERSION = 1  # of these files; another one is not read
_NEEDED = {"role", "rank", "patch_id", "phash"}
_GIVEN = pa.schema([field for field in ITEMS if field.name != "owner"])


def near_duplicates(
    work: StoragePath, catalogue: pa.Table, files: Mapping[str, StoragePath]
) -> pa.Table:
    """The table DUPLICATES of a manifest; what was found is remembered in the work folder.

    catalogue: columns of IMAGES. files: the parts by name. Equal to `find_duplicates` of all rows.
    """
    tables = [DUPLICATES.empty_table()]
    found, _ = _update(work, "photograph", {"": None}, {"": _photographs(catalogue)})
    ids = catalogue["image_id"].take(pc.index_in(found["id"], catalogue["path"].combine_chunks()))
    kept = catalogue["image_id"].take(
        pc.index_in(found["kept"], catalogue["path"].combine_chunks())
    )
    tables.append(found.set_column(1, DUPLICATES.field("id"), ids).set_column(
        2, DUPLICATES.field("kept"), kept))  # fmt: skip
    read: dict[str, dict[str, pa.Table]] = {}
    for role in PATCH_SIZE:
        found, read = _update(work, role, files, read)
        tables.append(found)
    return pa.concat_tables(tables)


def _update(
    work: StoragePath,
    kind: str,
    files: Mapping[str, StoragePath | None],
    read: dict[str, Any],
) -> tuple[pa.Table, dict[str, Any]]:
    """Bring what is known of a kind up to date; its near-duplicates, and what was read of parts."""
    old, names = _load(work / f"near-{kind}.parquet")
    if kind == "photograph":
        gone, new = _difference(old.table, read[""])
        current = [""]
    else:
        current = sorted(files)
        numbers = {name: number for number, name in enumerate(current)}
        renumbered = np.array([numbers.get(name, -1) for name in names], np.int32)
        files_of = renumbered[old.table["file"].to_numpy()] if names else np.empty(0, np.int32)
        gone = files_of < 0
        column = pa.array(files_of)
        old = Items(old.table.set_column(ITEMS.get_field_index("file"), "file", column))
        missing = sorted(files.keys() - set(names))
        for name in missing:
            if name not in read:
                path = files[name]
                assert path is not None
                read[name] = _patches(path)
        parts = [
            read[name][kind].append_column(
                "file", pa.array(np.full(len(read[name][kind]), numbers[name], np.int32))
            ).select(_GIVEN.names)
            for name in missing
        ]  # fmt: skip
        new = pa.concat_tables([_GIVEN.empty_table(), *parts])
    items = updated(old, gone, new, MAX_BITS[kind])
    if items is not old or names != current:
        with scratch(work, f"near-{kind}") as temporary:
            about = {"near": kind, "version": _VERSION, "files": current}
            write_table(temporary, items.table, about)
            (work / f"near-{kind}.parquet").take(temporary)
    return items.duplicates(kind), read


def _load(path: StoragePath) -> tuple[Items, list[str]]:
    """What is remembered, and the parts that it covers; nothing if it cannot be trusted."""
    try:
        table, digest = read_whole_table(path)
        about = decoded_metadata(table.schema)
        if digest is None or about["version"] != _VERSION:
            raise ValueError("of another version")
        return Items(table.cast(ITEMS).combine_chunks()), list(about["files"])
    except FileNotFoundError:
        pass
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        log.warning("%s: damaged (%s); near-duplicates are looked for again", path, reason(error))
    return empty(), []


def _photographs(catalogue: pa.Table) -> pa.Table:
    """The photographs that are compared: columns of ITEMS but `owner`."""
    used = catalogue.filter(pc.is_in(catalogue["status"], pa.array(["ok", "no_patches"])))
    used = used.filter(pc.is_valid(used["phash"]))
    pixels = pc.multiply(used["width"].cast(pa.int64()), used["height"].cast(pa.int64()))
    return _items(used["phash"], pc.negate(pixels), used["path"]).append_column(
        "file", pa.array(np.zeros(len(used), np.int32))
    ).select(_GIVEN.names)  # fmt: skip


def _patches(path: StoragePath) -> dict[str, pa.Table]:
    """The patches of a part that are compared, by role: columns of ITEMS but `file`, `owner`."""
    table = read_table(path, sorted(_NEEDED))
    if _NEEDED - {*table.schema.names}:  # from before there were hashes
        return {role: _GIVEN.empty_table().drop(["file"]) for role in PATCH_SIZE}
    table = table.filter(pc.is_valid(table["phash"]))
    by_role = {role: table.filter(pc.equal(table["role"], role)) for role in PATCH_SIZE}
    return {
        role: _items(rows["phash"], rows["rank"], rows["patch_id"])
        for role, rows in by_role.items()
    }


def _items(hashes: pa.ChunkedArray, first: pa.ChunkedArray, name: pa.ChunkedArray) -> pa.Table:
    numbers = np.array([int(text, 16) for text in hashes.to_pylist()], np.uint64)
    return pa.table({"hash": numbers, "first": first.cast(pa.int64()), "name": name})


def _difference(old: pa.Table, new: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """For each old row whether it is gone, and the new rows that were not there."""
    columns = ["name", "hash", "first"]

    def keys(table: pa.Table) -> list[tuple[Any, ...]]:
        return list(zip(*(table[name].to_pylist() for name in columns), strict=True))

    before, now = keys(old), keys(new)
    there, were = set(now), set(before)
    gone = np.array([key not in there for key in before], bool)
    return gone, new.filter(pa.array([key not in were for key in now], pa.bool_()))
