"""Publish finished parts as the manifest: readers see the old one or the new one."""

import contextlib
import io
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.files import replace_folder
from pipeline.build import cache
from pipeline.build.fingerprint import fingerprint
from pipeline.build.lock import HOLDER, LOCK
from pipeline.build.parts import (
    FAULTS,
    Part,
    damage,
    keep_part,
    part_files,
    read_part,
    write_catalogue,
)
from pipeline.build.plan import Build
from pipeline.config import CACHE_FOLDER
from pipeline.inputs.photographs import State
from pipeline.outputs import is_own_manifest, remove_own
from pipeline.publication import dropped, new_folder, place, place_copy, remove_outdated, states_in
from pipeline.sidecars.companions import are_whole, copy_beside, write_companions
from pipeline.sidecars.kept import KEPT
from pipeline.storage import StoragePath, reason, reported, scratch
from pipeline.summary import Summary, describe_unused, photographs, unused
from schemas.catalogue import IMAGES, beside
from schemas.current import POINTER, Current, read_current, write_current
from schemas.digest import Damaged
from schemas.manifest import FORMER_KEY
from schemas.parquet import table_writer

log = logging.getLogger(__name__)

# Raise it when the files beside a manifest are computed differently, so that they are made again.
VERSION = 1


def finish(build: Build, made: Sequence[str]) -> Summary:
    """Publish a build and remove what its manifest no longer needs.

    made: the names that `build_shard` returned. Raises UserError.
    """
    config, metadata, plan = build.job.config, build.job.metadata, build.plan
    out = StoragePath(config.out)

    def renewed(name: str) -> tuple[str, Part]:
        part = plan.parts[name]
        return renew(config.work, name, out, plan.states.get(name, {}), part), part

    with ThreadPoolExecutor(8) as executor:
        finished = dict(executor.map(renewed, plan.finished))
    parts = finished | {name: _made(config.work, name) for name in made}
    try:
        catalogue, published = publish(out, config.work, parts, made, metadata, config.verify)
    except NothingUsable:  # what a summary would have told
        if build.inputs.passed.counts:
            log.warning("passed over: %s", build.inputs.passed)
        raise
    names = {*published.current.beside.values(), *published.current.former, *KEPT}
    prune(config.work, parts, names)
    if config.cache is None and published.is_new:
        used = set(pc.unique(catalogue["image_id"]).to_pylist())
        cache.prune(config.cache_folder, build.job.identities, used)
    return Summary(
        str(out),
        str(out.parent / beside(out.name, "images.parquet")),
        len(published.current.files),
        _status(catalogue),
        {role: pc.sum(catalogue[f"n_{role}"]).as_py() for role in ("lr", "hr")},
        unused(catalogue),
        passed=str(build.inputs.passed),
        gone=plan.gone,
        kept=plan.kept,
        left_out=len(build.inputs.found) + plan.kept - plan.photographs,
    )


class NothingUsable(UserError):
    """No photograph gave a patch."""


@dataclass(frozen=True)
class Published:
    """What a manifest consists of now, and whether this build changed it."""

    current: Current
    is_new: bool


def publish(
    out: StoragePath,
    work: StoragePath,
    parts: Mapping[str, Part],
    made: Sequence[str],
    metadata: dict[str, Any],
    verify: bool = False,
) -> tuple[pa.Table, Published]:
    """Turn parts into the manifest and what belongs to it; returns its catalogue.

    parts: by name, those of earlier runs, whose failed photographs this build tried again, and
    those of this build, `made`. Of photographs with the same bytes only the first by name is used.
    If the manifest is that of these parts already, and whole, nothing is written, unless `verify`.
    Raises NothingUsable, after a line for each kind of photograph.
    """
    catalogues = {name: _rows(parts[name], name in made) for name in sorted(parts)}
    catalogue = _mark_duplicates(pa.concat_tables(catalogues.values()).sort_by("path"))
    if "ok" not in (status := _status(catalogue)):
        raise _nothing_usable(catalogue, status)
    made_from = fingerprint(
        VERSION, out.name, metadata, [[name, len(rows)] for name, rows in catalogues.items()]
    )
    former = _read_current(out)
    is_same = former is not None and former.made_from == made_from and not verify
    if former and is_same and _is_whole(out, work, former):
        return catalogue, Published(former, False)
    unwanted = catalogue.filter(pc.equal(catalogue["status"], "duplicate"))["path"]
    unwanted = unwanted.combine_chunks()
    with reported(out, "written"):
        folder = new_folder(work) if out.is_local else out
        placed, copies = {}, {}
        for name, rows in catalogues.items():
            if (without := dropped(rows, unwanted)) is None:
                continue
            placed[name] = f"{name}.parquet"
            if len(without):
                key = f"{name} {fingerprint(without.to_pylist())}"
                placed[name] = place_copy(out, work, folder, name, without, former, key)
                copies[key] = placed[name]
            else:
                place(part_files(work, name)[0], folder, former)
        files = {name: folder / name for name in sorted(placed.values())}
        schema = pq.read_schema((first := next(iter(files.values()))).key, filesystem=first.fs)
        companions = write_companions(
            out, work, metadata, catalogue, files, "split" in schema.names
        )
        found = states_in(folder)
        current = Current(
            {name: found[name] for name in files},
            companions,
            sorted({*former.beside.values()} - {*companions.values()}) if former else [],
            made_from,
            copies,
        )
        with scratch(work, POINTER) as temporary:
            write_current(temporary, schema, current)
            (folder / POINTER).take(temporary)  # in object storage, readers see the new one now
        if out.is_local:
            out.path.parent.mkdir(parents=True, exist_ok=True)
            replace_folder(folder.path, out.path, is_own_manifest)
    copy_beside(out, work, companions)
    if not out.is_local:
        remove_outdated(out, {*files, POINTER})
    return catalogue, Published(current, True)


def _made(work: StoragePath, name: str) -> Part:
    with _unchanged(work, name):
        return read_part(work, name, in_full=False)[0]


def _rows(part: Part, is_made: bool) -> pa.Table:
    """The rows of a part in the catalogue."""
    assert part.catalogue is not None
    if is_made:
        return part.catalogue
    again = pa.array(sorted(part.retried))
    return part.catalogue.filter(pc.invert(pc.is_in(part.catalogue["status"], again)))


def _status(catalogue: pa.Table) -> dict[str, int]:
    entries = catalogue["status"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in entries}


def _read_current(out: StoragePath) -> Current | None:
    """What the manifest says of itself; None: nothing that can be trusted."""
    try:
        return read_current(io.BytesIO((out / POINTER).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        log.warning("%s: damaged (%s); published again", out / POINTER, reason(error))
        return None


def _is_whole(out: StoragePath, work: StoragePath, current: Current) -> bool:
    """Whether a manifest and the files beside it are as they were published, and nothing else."""
    found = states_in(out)
    found.pop(POINTER, None)
    return found == current.files and are_whole(out, work, current.beside)


def renew(
    work: StoragePath,
    name: str,
    out: StoragePath,
    states: Mapping[str, State],
    known: Part | None = None,
) -> str:
    """Bring a finished part up to date; returns its name. known: what the plan read of it.

    A part of a version without digests is written again with one. Where the file of rows has
    another state than at its last check (the folder was copied, say), the new state is noted: the
    plan has read the file in full. out: the manifest, whose file of that name may be smaller.
    states: new states of photographs whose bytes are the same, so that a rerun trusts them.
    """
    with _unchanged(work, name):
        checked = known.about.get("checked") if known and not states else None
        if checked and part_files(work, name)[0].state() == checked:  # earlier parts have none
            return name
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


def _nothing_usable(catalogue: pa.Table, status: dict[str, int]) -> NothingUsable:
    for line in describe_unused(unused(catalogue)):
        log.warning("%s", line)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(status.items()))
    reasons = Counter(reason for reason in catalogue["error"].to_pylist() if reason)
    common = f"; most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    hint = "give other photographs"
    if status.get("no_patches"):
        hint += ", or lower --min-texture and --far-texture"
    return NothingUsable(
        f"none of {photographs(len(catalogue))} gave a patch ({counts}){common}", hint
    )


def sweep(work: StoragePath) -> None:
    """Remove the temporary files of a killed build; finished parts stay."""
    cached = work / CACHE_FOLDER
    if cached.is_local and cached.path.is_file():  # where the cache's folder belongs
        cached.remove()
    for name in work.names():
        if name.endswith(".tmp"):
            remove_own(work / name)


def prune(work: StoragePath, parts: Collection[str], others: Collection[str]) -> None:
    """Remove parts that no longer belong to the manifest, and other leftovers of builds.

    others: names of files that stay, besides those of the parts.
    """
    keep = {file.name for name in parts for file in part_files(work, name)}
    keep |= {CACHE_FOLDER, LOCK, HOLDER, *others}
    for name in work.names():
        if name not in keep:
            remove_own(work / name)
