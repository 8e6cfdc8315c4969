"""Catalogue, near-duplicates and data card of a build, published together with its rows.

They are written into the work folder first, under names that end in a digest of their content, and
never change there. `version.parquet` in the manifest names them (`schemas.current`): readers that
follow it see the old ones until it is replaced, and then the new ones. The files beside the
manifest are copies for everybody else.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lasr.marks import signed
from pipeline.outputs import is_marked, set_aside
from pipeline.sidecars.card import data_card
from pipeline.sidecars.kept import near_duplicates
from pipeline.storage import StoragePath, reported, scratch
from schemas.catalogue import BESIDE, beside
from schemas.manifest import PATCH_SIZE, split_of
from schemas.parquet import write_table


def write_companions(
    out: StoragePath,
    work: StoragePath,
    metadata: dict[str, Any],
    catalogue: pa.Table,
    files: Mapping[str, StoragePath],
    has_split: bool,
) -> dict[str, str]:
    """Write the three files into the work folder; returns their names there, by those of BESIDE.

    catalogue: columns of IMAGES. files: the parts by name. has_split: whether these have a column
    `split`. Raises StorageError.
    """
    duplicates = near_duplicates(work, catalogue, files)
    contents = _contents(catalogue), has_split
    card = signed(data_card(out, True, metadata, catalogue, contents, duplicates))
    tables = {"images.parquet": catalogue, "duplicates.parquet": duplicates}
    names = {}
    for name in BESIDE:
        with scratch(work, name) as temporary:
            if name in tables:
                write_table(temporary, tables[name], metadata)
            else:
                temporary.write_bytes(card.encode())
            kept = _kept_name(name, temporary.read_bytes())
            if not is_kept(work, kept):
                (work / kept).take(temporary)
        names[name] = kept
    return names


def copy_beside(out: StoragePath, work: StoragePath, names: Mapping[str, str]) -> None:
    """Bring the files beside a manifest up to date. names: as `write_companions` returns them.

    Raises UserError: one of them is not ours, or was edited.
    """
    for name, kept in names.items():
        path = out.parent / beside(out.name, name)
        with reported(work / kept, "read"):
            content = (work / kept).read_bytes()
        if _read(path) == content:
            continue
        with scratch(work, name) as temporary:
            temporary.write_bytes(content)
            set_aside(path)
            path.take(temporary, is_marked)


def are_whole(out: StoragePath, work: StoragePath, names: Mapping[str, str]) -> bool:
    """Whether the kept files are undamaged and those beside the manifest are equal to them."""
    return {*names} == {*BESIDE} and all(
        is_kept(work, kept)
        and _read(out.parent / beside(out.name, name)) == (work / kept).read_bytes()
        for name, kept in names.items()
    )


def is_kept(work: StoragePath, name: str) -> bool:
    """Whether a file is in the work folder with the content that its name says."""
    content = _read(work / name)
    return content is not None and name.rpartition(".")[0].endswith(_digest(content))


def _kept_name(name: str, content: bytes) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{stem}-{_digest(content)}.{suffix}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _read(path: StoragePath) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _contents(catalogue: pa.Table) -> Counter[tuple[str, str | None]]:
    """Patches by role and split. All patches of a photograph are in one."""
    counts = Counter[tuple[str, str | None]]()
    used = catalogue.filter(pc.equal(catalogue["status"], "ok"))
    columns = (used[name].to_pylist() for name in ("image_id", "split", "n_lr", "n_hr"))
    for image_id, split, *numbers in zip(*columns, strict=True):
        for role, number in zip(PATCH_SIZE, numbers, strict=True):
            counts[role, split or split_of(image_id)] += number
    return +counts
