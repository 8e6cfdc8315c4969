"""What is left to do, and how what is done becomes the manifest.

Finished parts stay in a work folder beside the manifest and are never changed; publishing links
them into a new folder that takes the manifest's place in one step. A part is a pair of files:
`part-x.parquet` (patches) and `part-x.images.parquet` (its rows of the catalogue), the second
written last: where it stands, the part is complete.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.images import Found
from schemas.errors import UserError
from schemas.files import atomic_path, remove, replace_folder
from schemas.manifest import IMAGES, METADATA_KEY, ROW_GROUP, images_path, parquet_writer

CODE_VERSION = 1  # raise it when the same input gives other rows than before


@dataclass(frozen=True)
class Shard:
    """Photographs that become one part together."""

    name: str
    photographs: tuple[Found, ...]


@dataclass(frozen=True)
class Plan:
    """A build as it stands: parts that are finished and shards that are to be done."""

    out: Path
    work: Path  # of these parameters; other parameters have other work folders
    finished: tuple[str, ...]
    to_do: tuple[Shard, ...]
    photographs: int


@dataclass(frozen=True)
class Summary:
    """What a finished build holds."""

    manifest: Path
    images: Path
    parts: int
    status: dict[str, int]
    patches: dict[str, int]


def fingerprint(parameters: dict[str, Any]) -> str:
    """Identity of everything but the photographs that determines the rows."""
    text = json.dumps(parameters | {"code": CODE_VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_build(out: Path, found: Sequence[Found], identity: str, shard_size: int) -> Plan:
    """Keep the finished parts whose photographs are all still as they were; cut the rest anew.

    A photograph counts as unchanged while its name, size and time of change are the same. So a
    rerun after a kill redoes only what was under way, and new photographs cost only themselves.
    """
    work = out.with_name(f"{out.name.removesuffix('.parquet')}.work") / identity
    states = {photograph.name: _state(photograph) for photograph in found}
    finished, covered = [], set[str]()
    for catalogue in sorted(work.glob("part-*.images.parquet")):
        members = _members(catalogue)
        if members and not covered & members.keys() and members.items() <= states.items():
            finished.append(catalogue.name.removesuffix(".images.parquet"))
            covered |= members.keys()
    rest = [photograph for photograph in found if photograph.name not in covered]
    cuts = (rest[i : i + shard_size] for i in range(0, len(rest), shard_size))
    shards = tuple(Shard(_shard_name(cut), tuple(cut)) for cut in cuts)
    return Plan(out, work, tuple(finished), shards, len(found))


def _state(photograph: Found) -> str:
    return f"{photograph.size}:{photograph.modified}"


def _shard_name(photographs: Sequence[Found]) -> str:
    text = "\n".join(f"{p.name}:{_state(p)}" for p in photographs)
    return "part-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _members(catalogue: Path) -> dict[str, str]:
    metadata = pq.read_schema(catalogue).metadata or {}
    members: dict[str, str] = json.loads(metadata.get(METADATA_KEY, b"{}")).get("members", {})
    return members


def part_paths(work: Path, name: str) -> tuple[Path, Path]:
    """Where the patches and the catalogue rows of a part stand."""
    return work / f"{name}.parquet", work / f"{name}.images.parquet"


def members_metadata(shard: Shard) -> dict[str, Any]:
    """What a part's catalogue says of the files it was made from."""
    return {"members": {photograph.name: _state(photograph) for photograph in shard.photographs}}


def publish(plan: Plan, metadata: dict[str, Any]) -> Summary:
    """Turn finished parts into the manifest and its catalogue; readers see the old or the new.

    Photographs with the same bytes are used once, the first by name. Parts of other parameters and
    parts that lost a photograph go. Raises UserError where no photograph gave a patch.
    """
    names = [*plan.finished, *(shard.name for shard in plan.to_do)]
    parts = [part_paths(plan.work, name) for name in sorted(set(names))]
    catalogue = _mark_duplicates(pa.concat_tables(pq.read_table(images) for _, images in parts))
    status = Counter(catalogue["status"].to_pylist())
    if not status["ok"]:
        reasons = Counter(reason for reason in catalogue["error"].to_pylist() if reason)
        common = f"; most often: {reasons.most_common(1)[0][0]}" if reasons else ""
        raise UserError(
            f"none of {len(catalogue)} photographs gave a patch"
            f" ({', '.join(f'{n} {s}' for s, n in status.items())}){common}"
        )
    _publish_parts([patches for patches, _ in parts], catalogue, plan)
    images = images_path(plan.out)
    with atomic_path(images) as temporary:
        encoded = {METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()}
        pq.write_table(catalogue.replace_schema_metadata(encoded), temporary)
    _tidy(plan.work, {path.name for part in parts for path in part})
    patches = {role: pc.sum(catalogue[f"n_{role}"]).as_py() for role in ("lr", "hr")}
    return Summary(plan.out, images, len(parts), dict(status), patches)


def _mark_duplicates(catalogue: pa.Table) -> pa.Table:
    rows = catalogue.sort_by("path").to_pylist()
    first: dict[str, str] = {}
    for row in rows:
        if row["status"] in ("ok", "no_patches"):
            original = first.setdefault(row["image_id"], row["path"])
            if original != row["path"]:
                reason = f"same bytes as {original}"
                row |= {"status": "duplicate", "error": reason, "n_lr": 0, "n_hr": 0}
    return pa.Table.from_pylist(rows, schema=IMAGES)


def _publish_parts(parts: Iterable[Path], catalogue: pa.Table, plan: Plan) -> None:
    duplicate = pc.equal(catalogue["status"], "duplicate")
    unwanted = catalogue.filter(duplicate)["path"].combine_chunks()
    new = plan.work.parent / "publishing"
    remove(new)  # a build that was killed here left its own
    new.mkdir(parents=True)
    for part in parts:
        paths = pq.read_table(part, columns=["image_path"])["image_path"]
        if pc.any(pc.is_in(paths, unwanted)).as_py():
            _copy_without(part, new / part.name, unwanted)
        elif len(paths):
            _link(part, new / part.name)
    replace_folder(new, plan.out)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # finished parts never change, so both names can share the bytes
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _copy_without(source: Path, target: Path, unwanted: pa.Array) -> None:
    part = pq.ParquetFile(source)
    with atomic_path(target) as temporary, parquet_writer(temporary, part.schema_arrow) as writer:
        for batch in part.iter_batches(ROW_GROUP):
            kept = batch.filter(pc.invert(pc.is_in(batch["image_path"], unwanted)))
            writer.write_batch(kept)


def _tidy(work: Path, keep: set[str]) -> None:
    """Remove what no longer belongs to this manifest: other parameters, changed photographs."""
    for path in work.parent.iterdir():
        if path != work:
            remove(path)
    for path in work.iterdir():
        if path.name not in keep:
            remove(path)
