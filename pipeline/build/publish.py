"""Publish finished parts as the manifest: readers see the old one or the new one."""

import os
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.files import replace_folder
from pipeline.build import cache
from pipeline.build.lock import HOLDER, LOCK
from pipeline.build.parts import part_files, retried, update_states
from pipeline.build.plan import Build
from pipeline.config import CACHE_FOLDER
from pipeline.outputs import is_marked, is_own_manifest, remove_own
from pipeline.sidecars import write_sidecars
from pipeline.storage import StoragePath, read_table, reported, scratch
from pipeline.summary import Summary, unused
from schemas.catalogue import IMAGES, beside
from schemas.parquet import ROW_GROUP, decoded_metadata, encoded_metadata, parquet_writer


def finish(build: Build, made: Sequence[str]) -> Summary:
    """Publish a build and remove what its manifest no longer needs.

    made: the names that `build_shard` returned. Raises UserError.
    """
    config, finished, metadata = build.job.config, build.plan.finished, build.job.metadata
    out = StoragePath(config.out)
    summary = publish(out, config.work, finished, made, metadata)
    write_sidecars(out, metadata, config.work)
    prune(config.work, [*finished, *made])
    for name, states in build.plan.states.items():
        update_states(config.work, name, states)
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
    with reported(work, "read"):
        catalogue = _mark_duplicates(_read_catalogue(work, finished, made))
    status = {
        entry["values"]: entry["counts"] for entry in catalogue["status"].value_counts().to_pylist()
    }
    if not status.get("ok"):
        raise _nothing_usable(catalogue, status)
    unwanted = catalogue.filter(pc.equal(catalogue["status"], "duplicate"))["path"]
    parts = sorted({*finished, *made})
    publish_parts = _publish_locally if out.is_local else _publish_objects
    with reported(out, "written"):
        files = publish_parts(out, work, parts, unwanted.combine_chunks())
    images = out.parent / beside(out.name, "images.parquet")
    encoded = encoded_metadata(IMAGES, metadata)
    with scratch(work, images.name) as temporary:  # the folder that `sweep` cleans
        pq.write_table(catalogue.replace_schema_metadata(encoded), temporary)
        images.take(temporary, is_marked)
    patches = {role: pc.sum(catalogue[f"n_{role}"]).as_py() for role in ("lr", "hr")}
    return Summary(str(out), str(images), files, status, patches, unused(catalogue))


def _read_catalogue(work: StoragePath, finished: Sequence[str], made: Sequence[str]) -> pa.Table:
    def read(name: str) -> pa.Table:
        table = read_table(part_files(work, name)[1])
        again = pa.array(sorted(retried(decoded_metadata(table.schema))))
        for column in IMAGES:  # a part of an earlier version has fewer
            if column.name not in table.schema.names:
                table = table.append_column(column, pa.nulls(len(table), column.type))
        table = table.select(IMAGES.names).cast(IMAGES)
        return table if name in made else table.filter(pc.invert(pc.is_in(table["status"], again)))

    with ThreadPoolExecutor(8) as executor:
        return pa.concat_tables(executor.map(read, sorted({*finished, *made}))).sort_by("path")


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
        f"none of {len(catalogue)} photographs gave a patch ({counts}){common}",
        "give other photographs, or lower --min-texture",
    )


def _publish_locally(
    out: StoragePath, work: StoragePath, parts: Sequence[str], unwanted: pa.Array
) -> int:
    """Link the parts into a new folder, then replace the manifest by it in one step.

    Returns the number of files; a part without a patch gives none.
    """
    new = work / "publishing"
    if new.exists():  # of a build that was killed here
        remove_own(new)
    new.path.mkdir(parents=True)
    for name in parts:
        source, _ = part_files(work, name)
        rows = _wanted(source, unwanted)
        if rows == "some":
            _copy_without(source, new.path / source.name, unwanted)
        elif rows == "all":
            _link(source.path, new.path / source.name)
    files = len(new.names())
    out.path.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(new.path, out.path, is_own_manifest)
    return files


def _publish_objects(
    out: StoragePath, work: StoragePath, parts: Sequence[str], unwanted: pa.Array
) -> int:
    """Copy the missing parts, then remove the outdated ones. Returns the number of files.

    Object storage cannot exchange folders: in between, a reader may see rows of both manifests.
    """
    existing, wanted = set(out.names()), set[str]()
    for name in parts:
        source, _ = part_files(work, name)
        rows = _wanted(source, unwanted)
        if rows == "none":
            continue
        # A part without its duplicates has other rows, so it needs another name.
        target = out / (source.name if rows == "all" else f"{name}-without.parquet")
        wanted.add(target.name)
        if rows == "some":
            with scratch(out, target.name) as temporary:
                _copy_without(source, temporary, unwanted)
                target.take(temporary)
        elif target.name not in existing:
            source.fs.copy_file(source.key, target.key)
    for name in existing - wanted:
        remove_own(out / name)
    return len(wanted)


def _wanted(part: StoragePath, unwanted: pa.Array) -> str:
    """Which rows of a part belong to the manifest: "all", "some" or "none"."""
    paths = read_table(part, ["image_path"])["image_path"]
    dropped = pc.is_in(paths, unwanted)
    if not len(paths) or pc.all(dropped).as_py():
        return "none"
    return "some" if pc.any(dropped).as_py() else "all"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # parts never change, so both names can share the bytes
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _copy_without(source: StoragePath, target: Path, unwanted: pa.Array) -> None:
    with source.fs.open_input_file(source.key) as file:
        part = pq.ParquetFile(file)
        with parquet_writer(target, part.schema_arrow) as writer:
            for batch in part.iter_batches(ROW_GROUP):
                writer.write_batch(batch.filter(pc.invert(pc.is_in(batch["image_path"], unwanted))))


def sweep(work: StoragePath) -> None:
    """Remove the temporary files of a killed build; finished parts stay."""
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
