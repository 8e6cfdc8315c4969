"""The parts of a publication, in a new folder on a disk or among others in object storage.

On a disk the folder takes the manifest's place in one step. In object storage parts are added, then
`version.parquet` is replaced (`schemas.current`), then parts that it no longer names are removed.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.build.parts import file_name, part_files
from pipeline.outputs import remove_own
from pipeline.storage import StoragePath, scratch
from schemas.current import Current
from schemas.digest import Damaged
from schemas.manifest import FORMER_KEY
from schemas.parquet import ROW_GROUP, table_writer

GRACE = 5.0  # seconds in which readers of object storage may finish with parts that have gone


def new_folder(work: StoragePath) -> StoragePath:
    new = work / "publishing"
    if new.exists():  # of a build that was killed here
        remove_own(new)
    new.path.mkdir(parents=True)
    return new


def dropped(catalogue: pa.Table, unwanted: pa.Array) -> pa.Array | None:
    """The photographs of a part whose rows the manifest leaves out; None: all that have any."""
    has_rows = pc.greater(pc.add(catalogue["n_lr"], catalogue["n_hr"]), 0)
    paths = catalogue.filter(has_rows)["path"].combine_chunks()
    dropped = paths.filter(pc.is_in(paths, unwanted))
    return None if len(dropped) == len(paths) else dropped


def place(source: StoragePath, folder: StoragePath, former: Current | None) -> None:
    """Put a part into the manifest, unless it is there as it was published."""
    if folder.is_local:
        _link(source.path, folder.path / source.name)
    elif not _is_there(folder / source.name, former):
        source.fs.copy_file(source.key, (folder / source.name).key)


def _is_there(path: StoragePath, former: Current | None) -> bool:
    try:
        state = _state(path)
    except FileNotFoundError:
        return False
    return former is None or state == former.files.get(path.name, state)


def place_copy(
    out: StoragePath,
    work: StoragePath,
    folder: StoragePath,
    name: str,
    dropped: pa.Array,
    former: Current | None,
    key: str,
) -> str:
    """Put a part without some photographs into the manifest; returns the name of its file.

    If the manifest has it already, it is not written again.
    """
    there = former.copies.get(key) if former else None
    if there and former and there in former.files and _is_there(out / there, former):
        if folder.is_local:
            _link((out / there).path, (folder / there).path)
        return there
    with scratch(work, name) as temporary:
        target = _copy_without(part_files(work, name)[0], temporary, dropped)
        if folder.is_local or not _is_there(folder / target, former):
            (folder / target).take(temporary)
    return target


def remove_outdated(out: StoragePath, wanted: Collection[str]) -> None:
    """Remove parts that the manifest no longer names, some seconds after it stopped to.

    Readers that opened it before may still be reading them.
    """
    if outdated := [name for name in out.names() if name not in wanted]:
        time.sleep(GRACE)
    for name in outdated:
        remove_own(out / name)


def states_in(folder: StoragePath) -> dict[str, list[int]]:
    """Size and modification time (ns) of the files in a folder; on a disk, what holds them, too.

    A file that took the name of another is noticed by the last, whatever its time says.
    """
    if folder.is_local:
        states = {}
        for name in folder.names():
            with contextlib.suppress(FileNotFoundError, Damaged):
                states[name] = _state(folder / name)
        return states
    selector = pafs.FileSelector(folder.key, allow_not_found=True)
    found = folder.fs.get_file_info(selector)
    return {info.base_name: [info.size, info.mtime_ns or 0] for info in found}


def _state(path: StoragePath) -> list[int]:
    return [*path.state(), *([path.path.stat().st_ino] if path.is_local else [])]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # parts never change, so both names can share the bytes
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _copy_without(source: StoragePath, target: Path, unwanted: pa.Array) -> str:
    """Write the other rows of a part; returns the name that their digest gives the file."""
    with source.open() as file:
        part = pq.ParquetFile(file, page_checksum_verification=True)
        former = (part.metadata.metadata or {}).get(FORMER_KEY.encode())
        more = {FORMER_KEY: former.decode()} if former else {}
        with table_writer(target, part.schema_arrow, lambda: more) as write:
            for batch in part.iter_batches(ROW_GROUP):
                rows = batch.filter(pc.invert(pc.is_in(batch["image_path"], unwanted)))
                write(pa.Table.from_batches([rows]))
    with open(target, "rb") as copy:
        return file_name(copy)
