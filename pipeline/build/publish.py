"""Publish finished parts as the manifest: readers see the old one or the new one."""

import contextlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.files import replace_folder
from pipeline.build import cache
from pipeline.build.lock import HOLDER, LOCK
from pipeline.build.parts import (
    FAULTS,
    as_catalogue,
    damage,
    file_name,
    keep_part,
    part_files,
    read_part,
    write_catalogue,
)
from pipeline.build.plan import Build
from pipeline.config import CACHE_FOLDER
from pipeline.inputs.photographs import State
from pipeline.outputs import is_marked, is_own_manifest, remove_own, set_aside
from pipeline.sidecars import write_sidecars
from pipeline.storage import StoragePath, read_table, reported, scratch
from pipeline.summary import Summary, photographs, unused
from schemas.catalogue import IMAGES, beside
from schemas.manifest import FORMER_KEY
from schemas.parquet import ROW_GROUP, table_writer, write_table

log = logging.getLogger(__name__)

Wanted = Literal["all", "some", "none"]  # rows of a part


def finish(build: Build, made: Sequence[str]) -> Summary:
    """Publish a build and remove what its manifest no longer needs.

    made: the names that `build_shard` returned. Raises UserError.
    """
    config, metadata = build.job.config, build.job.metadata
    out = StoragePath(config.out)
    states = build.plan.states

    def renewed(name: str) -> str:
        return renew(config.work, name, out, states.get(name, {}))

    with ThreadPoolExecutor(8) as executor:
        finished = list(executor.map(renewed, build.plan.finished))
    summary = publish(out, config.work, finished, made, metadata)
    write_sidecars(out, metadata, config.work)
    prune(config.work, [*finished, *made])
    if config.cache is None:
        image_ids = read_table(StoragePath(summary.images), ["image_id"])["image_id"]
        used = set(pc.unique(image_ids).to_pylist())
        cache.prune(config.cache_folder, build.job.identities, used)
    return replace(
        summary,
        passed=str(build.inputs.passed),
        gone=build.plan.gone,
        kept=build.plan.kept,
        left_out=len(build.inputs.found) + build.plan.kept - build.plan.photographs,
    )


def publish(
    out: StoragePath,
    work: StoragePath,
    finished: Sequence[str],
    made: Sequence[str],
    metadata: dict[str, Any],
) -> Summary:
    """Turn parts into the manifest and its catalogue.

    finished: parts of earlier runs, whose failed photographs this build tried again. made: parts of
    this build. Of photographs with the same bytes only the first by name is used.
    Raises UserError: no photograph gave a patch.
    """
    catalogues = _read_catalogues(work, finished, made)
    catalogue = _mark_duplicates(pa.concat_tables(catalogues.values()).sort_by("path"))
    status = {
        entry["values"]: entry["counts"] for entry in catalogue["status"].value_counts().to_pylist()
    }
    if not status.get("ok"):
        raise _nothing_usable(catalogue, status)
    unwanted = catalogue.filter(pc.equal(catalogue["status"], "duplicate"))["path"]
    unwanted = unwanted.combine_chunks()
    wanted = {name: _wanted(catalogues[name], unwanted) for name in sorted(catalogues)}
    publish_parts = _publish_locally if out.is_local else _publish_objects
    with reported(out, "written"):
        files = publish_parts(out, work, wanted, unwanted)
    images = out.parent / beside(out.name, "images.parquet")
    with scratch(work, images.name) as temporary:  # the folder that `sweep` cleans
        write_table(temporary, catalogue, metadata)
        set_aside(images)
        images.take(temporary, is_marked)
    patches = {role: pc.sum(catalogue[f"n_{role}"]).as_py() for role in ("lr", "hr")}
    return Summary(str(out), str(images), files, status, patches, unused(catalogue))


def renew(work: StoragePath, name: str, out: StoragePath, states: Mapping[str, State]) -> str:
    """Bring a finished part up to date; returns its name.

    A part of a version without digests is written again with one. Where the file of rows has
    another state than at its last check (the folder was copied, say), the new state is noted: the
    plan has read the file in full. out: the manifest, whose file of that name may be smaller.
    states: new states of photographs whose bytes are the same, so that a rerun trusts them.
    """
    with _unchanged(work, name):
        part, catalogue = read_part(work, name, in_full=False)
        patches, entries = part_files(work, name)
        about = part.about | {"states": part.states | dict(states)}
        if not part.is_earlier:
            if states or patches.state() != about["checked"]:
                write_catalogue(work, name, catalogue, about)
            return name
        published = out / patches.name
        size = (published if published.exists() else patches).state()[0]
        former = {FORMER_KEY: json.dumps([patches.name, size])}
        with patches.open() as file, scratch(work, name) as temporary:
            rows = pq.ParquetFile(file)
            with table_writer(temporary, rows.schema_arrow, lambda: former) as write:
                for group in range(rows.num_row_groups):
                    write(rows.read_row_group(group))
            new = keep_part(work, temporary, catalogue, about)
        log.info("%s: checked, and written again as %s", patches, new)
        entries.remove()
        patches.remove()
        return new


@contextlib.contextmanager
def _unchanged(work: StoragePath, name: str) -> Iterator[None]:
    """Turn the errors of a part that was damaged while the build ran into a UserError."""
    try:
        yield
    except FAULTS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(damage(work, name, error), "run the same command again") from error


def _read_catalogues(
    work: StoragePath, finished: Sequence[str], made: Sequence[str]
) -> dict[str, pa.Table]:
    """The catalogue rows of each part, after a check that no part has changed since the plan."""

    def read(name: str) -> pa.Table:
        with _unchanged(work, name):
            part, table = read_part(work, name, in_full=False)
        table = as_catalogue(table)
        again = pa.array(sorted(part.retried))
        return table if name in made else table.filter(pc.invert(pc.is_in(table["status"], again)))

    names = sorted({*finished, *made})
    with ThreadPoolExecutor(8) as executor:
        return dict(zip(names, executor.map(read, names), strict=True))


def _mark_duplicates(catalogue: pa.Table) -> pa.Table:
    """Mark all but the first of photographs with the same bytes; catalogue: sorted by path."""
    used = catalogue.filter(pc.is_in(catalogue["status"], pa.array(["ok", "no_patches"])))
    groups = used.group_by("image_id").aggregate([("path", "min"), ("path", "count")])
    twice = groups.filter(pc.greater(groups["path_count"], 1))
    first = dict(zip(twice["image_id"].to_pylist(), twice["path_min"].to_pylist(), strict=True))
    if not first:
        return catalogue
    is_member = pc.is_in(catalogue["image_id"], pa.array(list(first)))
    rows = catalogue.filter(is_member).to_pylist()
    for row in rows:
        if (original := first[row["image_id"]]) != row["path"]:
            reason = f"same bytes as {original}"
            row |= {"status": "duplicate", "error": reason, "n_lr": 0, "n_hr": 0}
    others = catalogue.filter(pc.invert(pc.fill_null(is_member, False)))
    return pa.concat_tables([others, pa.Table.from_pylist(rows, schema=IMAGES)]).sort_by("path")


def _nothing_usable(catalogue: pa.Table, status: dict[str, int]) -> UserError:
    reasons = Counter(reason for reason in catalogue["error"].to_pylist() if reason)
    common = f"; most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    counts = ", ".join(f"{count} {name}" for name, count in status.items())
    return UserError(
        f"none of {photographs(len(catalogue))} gave a patch ({counts}){common}",
        "give other photographs, or lower --min-texture and --far-texture",
    )


def _publish_locally(
    out: StoragePath, work: StoragePath, parts: Mapping[str, Wanted], unwanted: pa.Array
) -> int:
    """Link the parts into a new folder, then replace the manifest by it in one step.

    Returns the number of files; a part without a patch gives none.
    """
    new = work / "publishing"
    if new.exists():  # of a build that was killed here
        remove_own(new)
    new.path.mkdir(parents=True)
    for name, rows in parts.items():
        source, _ = part_files(work, name)
        if rows == "some":
            with scratch(new, name) as temporary:
                (new / _copy_without(source, temporary, unwanted)).take(temporary)
        elif rows == "all":
            _link(source.path, new.path / source.name)
    files = len(new.names())
    out.path.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(new.path, out.path, is_own_manifest)
    return files


def _publish_objects(
    out: StoragePath, work: StoragePath, parts: Mapping[str, Wanted], unwanted: pa.Array
) -> int:
    """Copy the missing parts, then remove the outdated ones. Returns the number of files.

    Object storage cannot exchange folders: in between, a reader may see rows of both manifests.
    """
    existing, wanted = set(out.names()), set[str]()
    for name, rows in parts.items():
        source, _ = part_files(work, name)
        if rows == "some":
            with scratch(out, name) as temporary:
                wanted.add(target := _copy_without(source, temporary, unwanted))
                if target not in existing:
                    (out / target).take(temporary)
        elif rows == "all":
            wanted.add(source.name)
            if source.name not in existing:
                source.fs.copy_file(source.key, (out / source.name).key)
    for name in existing - wanted:
        remove_own(out / name)
    return len(wanted)


def _wanted(catalogue: pa.Table, unwanted: pa.Array) -> Wanted:
    """Which rows of a part belong to the manifest. catalogue: of the part."""
    has_rows = pc.greater(pc.add(catalogue["n_lr"], catalogue["n_hr"]), 0)
    dropped = pc.is_in(catalogue.filter(has_rows)["path"], unwanted)
    if pc.all(dropped).as_py() is not False:  # also: it has no rows
        return "none"
    return "some" if pc.any(dropped).as_py() else "all"


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


def sweep(work: StoragePath) -> None:
    """Remove the temporary files of a killed build; finished parts stay."""
    cached = work / CACHE_FOLDER
    if cached.is_local and cached.path.is_file():  # where the cache's folder belongs
        cached.remove()
    for name in work.names():
        if name.endswith(".tmp"):
            remove_own(work / name)


def prune(work: StoragePath, parts: Collection[str]) -> None:
    """Remove parts that no longer belong to the manifest, and other leftovers of builds."""
    keep = {file.name for name in parts for file in part_files(work, name)}
    keep |= {CACHE_FOLDER, LOCK, HOLDER}
    for name in work.names():
        if name not in keep:
            remove_own(work / name)
