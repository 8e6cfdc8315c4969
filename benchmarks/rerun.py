"""What a rerun of a build costs where nothing, or little, has changed.

    python -m benchmarks.rerun
    python -m benchmarks.rerun --photographs 885 --keep /tmp/rerun

A work folder and a manifest are made as a build of so many photographs leaves them: parts of 256,
16 patches each with the same small PNG, random hashes of which some are alike, empty files in place
of photographs and cached features. Then, each in a process of its own: the build that publishes all
of it, a rerun with nothing to do, one with 100 new photographs, and one with nothing to do.

Figures are those of the build without Prefect. Phases are in CPU seconds, which other programs on
the machine change little; "own work" is making the part of the new photographs.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.pictures.png import encode_png
from pipeline.build.cache import Cache
from pipeline.build.parts import Shard, catalogue_identity, keep_part, part_metadata
from pipeline.build.plan import Prepared, prepare
from pipeline.config import BuildConfig
from pipeline.inputs.photographs import Found
from pipeline.storage import scratch
from schemas.catalogue import IMAGES
from schemas.manifest import PATCH_SIZE, PATCHES, WORDS_PER_PATCH, split_of
from schemas.parquet import ROW_GROUP, encoded_metadata, table_writer

K = 8  # patches per role
SHARD = 256  # photographs per part
# What is timed: module, function, name in the table. Inner ones count in outer ones, too.
PHASES = (
    ("pipeline.build.plan", "find_all", "list photographs"),
    ("pipeline.build.plan", "check_outputs", "check outputs"),
    ("pipeline.build.plan", "read_parts", "read parts"),
    ("pipeline.build.plan", "_compare", "compare"),
    ("pipeline.build.plan", "plan_shards", "cut shards"),
    ("pipeline.build.shard", "build_shard", "own work"),
    ("pipeline.build.publish", "finish", "finish"),
    ("pipeline.build.publish", "publish", "publish"),
    ("pipeline.build.publish", "write_companions", "companions"),
    ("pipeline.sidecars.companions", "near_duplicates", "near-duplicates"),
    ("pipeline.sidecars.kept", "updated", "search"),
    ("pipeline.build.cache", "prune", "prune cache"),
)


class RerunBenchmark(BaseModel):
    """The flags of `benchmarks.rerun`."""

    photographs: list[int] = Field(
        [885, 8844, 88441], description="sizes; each photograph has 16 patches"
    )
    added: int = Field(100, ge=1, description="new photographs")
    keep: Path | None = Field(None, description="make the folders there, and leave them")
    child: Path | None = Field(None, description="internal: run the build of this folder")


def settings(folder: Path) -> BuildConfig:
    """The build of a made folder."""
    return BuildConfig(
        images=[str(folder / "photographs")], out=folder / "patches.parquet", profile="test", k=K,
        shard_size=SHARD, workers=2,
    )  # fmt: skip


def make(folder: Path, photographs: int) -> None:
    """Make photographs and their finished parts, as if a build had been killed before it ended."""
    rng = np.random.default_rng(0)
    names = [f"photographs/{n // 1000:03}/{n:06}.jpg" for n in range(photographs)]
    for name, size in zip(names, rng.integers(200_000, 2_000_000, photographs), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            file.truncate(int(size))  # takes no space
    prepared = prepare(settings(folder))
    found = prepared.photographs
    cache = Cache(prepared.job.config.cache_folder, "", prepared.job.identities.features)
    patches = _Patches(rng, 2 * K * photographs, list(prepared.job.words))
    for start in range(0, photographs, SHARD):
        _part(prepared, found[start : start + SHARD], patches, start, cache)


def _part(
    prepared: Prepared, found: list[Found], patches: "_Patches", start: int, cache: Cache
) -> None:
    job = prepared.job
    ids = [f"{(start + n) * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4 for n in range(len(found))]
    entries = [
        {
            "image_id": image_id, "path": one.name, "width": 2040, "height": 1356, "status": "ok",
            "error": None, "n_lr": K, "n_hr": K, "phash": f"{phash:016x}",
            "split": split_of(image_id), "note": None,
        }
        for one, image_id, phash in zip(
            found, ids, patches.rng.integers(0, 2**63, len(found)), strict=True
        )
    ]  # fmt: skip
    schema = PATCHES.with_metadata(encoded_metadata(PATCHES, job.metadata))
    work = job.config.work
    with scratch(work, "made") as temporary:
        with table_writer(temporary, schema, lambda: catalogue_identity(entries)) as write:
            table = patches.table(entries, start * 2 * K).cast(schema)
            for at in range(0, len(table), ROW_GROUP):
                write(table.slice(at, ROW_GROUP).combine_chunks())
        catalogue = pa.Table.from_pylist(entries, schema=IMAGES)
        shard = Shard("made", tuple(found))
        keep_part(work, temporary, catalogue, part_metadata(job.identities, shard))
    for image_id in ids:
        path = cache._features_path(image_id).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class _Patches:
    """Rows of patches, made by columns."""

    def __init__(self, rng: np.random.Generator, rows: int, words: list[str]):
        self.rng, self._words = rng, pa.array(words)
        self._png = encode_png(np.zeros((8, 8, 3), np.uint8))
        hashes = rng.integers(0, 2**64, rows, dtype=np.uint64)
        copies = rng.random(rows) < 0.08  # of earlier ones of their role, with up to 4 bits turned
        at = np.flatnonzero(copies)
        at = at[at >= 2 * K]
        from_ = (rng.random(len(at)) * (at // (2 * K))).astype(int) * 2 * K + at % (2 * K)
        for _ in range(4):
            turned = np.uint64(1) << rng.integers(0, 64, len(at), dtype=np.uint64)
            hashes[at] = hashes[from_] ^ np.where(rng.random(len(at)) < 0.5, turned, np.uint64(0))
        self._hashes = hashes

    def table(self, entries: list[dict[str, Any]], first: int) -> pa.Table:
        n = len(entries) * 2 * K
        photo = np.repeat(np.arange(len(entries)), 2 * K)
        roles = np.tile(np.repeat(list(PATCH_SIZE), K), len(entries))
        words = self._words.take(pa.array(self.rng.integers(0, len(self._words), n * 24)))
        offsets = pa.array(np.arange(n + 1) * WORDS_PER_PATCH, pa.int32())
        ids = self.rng.bytes(16 * n).hex()
        hashes = [
            None if h % 20 == 0 else f"{h:016x}" for h in self._hashes[first : first + n].tolist()
        ]
        columns = {
            "patch_id": pa.array([ids[32 * i : 32 * i + 32] for i in range(n)]),
            "role": pa.array(roles),
            "size": pa.array(np.where(roles == "lr", *PATCH_SIZE.values())),
            "rank": pa.array(np.tile(np.arange(K), 2 * len(entries))),
            "words": pa.ListArray.from_arrays(offsets, words),
            "word_scores": pa.ListArray.from_arrays(
                offsets, pa.array(self.rng.random(n * WORDS_PER_PATCH, np.float32))
            ),
            "image": pa.StructArray.from_arrays(
                [pa.array([self._png] * n, pa.binary()), pa.nulls(n, pa.string())],
                ["bytes", "path"],
            ),
            "phash": pa.array(hashes, pa.string()),
        }
        for name, column in (("image_id", "image_id"), ("image_path", "path"), ("split", "split")):
            columns[name] = pa.array([entry[column] for entry in entries]).take(pa.array(photo))
        for name, text in (("strategy", "depth"), ("depth_model", "m"), ("caption_model", "c"),
                           ("caption", "words")):  # fmt: skip
            columns[name] = pa.array([text]).take(pa.array(np.zeros(n, int)))
        for column in PATCHES:
            if column.name not in columns:
                columns[column.name] = pa.array(self.rng.integers(0, 999, n)).cast(column.type)
        return pa.table({column.name: columns[column.name] for column in PATCHES})


def add(folder: Path, number: int = 100) -> None:
    """Add new photographs that a build can read."""
    new = folder / "photographs" / f"new{len(list((folder / 'photographs').iterdir()))}"
    new.mkdir()
    rng = np.random.default_rng(len(new.name) + sum(map(ord, new.name)))
    for which in range(number):
        small = rng.integers(0, 255, (30, 34, 3), np.uint8)
        picture = cv2.resize(small, (360, 300), interpolation=cv2.INTER_CUBIC)
        (new / f"{which}.png").write_bytes(encode_png(picture))


def build(folder: Path) -> dict[str, Any]:
    """Build in this process; CPU seconds by phase, and peak memory."""
    started, phases = time.monotonic(), dict[str, float]()
    phases["start"] = time.process_time()  # importing libraries
    from pipeline.build import plan, publish, shard

    for module, name, title in PHASES:
        place = importlib.import_module(module)
        if function := getattr(place, name, None):
            setattr(place, name, _timed(function, title, phases))
    config = settings(folder)
    planned = plan.plan_build(plan.prepare(config))
    made = [shard.build_shard(planned.job, one) for one in planned.plan.to_do]
    publish.finish(planned, made)
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/status", encoding="utf-8") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {
        "seconds": time.monotonic() - started, "cpu": used.ru_utime + used.ru_stime,
        "MB": peak // 1024, "made": len(made), "phases": phases,
    }  # fmt: skip


def _timed(function: Callable[..., Any], title: str, phases: dict[str, float]) -> Any:
    def call(*given: Any, **named: Any) -> Any:
        started = time.process_time()
        try:
            return function(*given, **named)
        finally:
            phases[title] = phases.get(title, 0.0) + time.process_time() - started

    return call


def _child(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.rerun", "--child", str(folder)]
    answer = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ}, text=True
    )
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


def measured(folder: Path, photographs: int, added: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make a folder of this size and measure; yields each figure as it comes."""
    if not (folder / "patches.work").exists():
        make(folder, photographs)
        print(f"{photographs} photographs: made", file=sys.stderr)
        yield "all published", _child(folder)
    yield "no change", _child(folder)
    add(folder, added)
    yield f"{added} new", _child(folder)


def run(config: RerunBenchmark) -> None:
    """Print a Markdown table."""
    if config.child:
        print(json.dumps(build(config.child)))
        return
    print("| rows | rerun | seconds | CPU s | beyond own work | peak MB | phases, CPU s |")
    print("|---|---|---|---|---|---|---|")
    for photographs in config.photographs:
        with tempfile.TemporaryDirectory(prefix="lasr-rerun-") as temporary:
            folder = (config.keep or Path(temporary)) / str(photographs)
            for title, found in measured(folder, photographs, config.added):
                phases = found["phases"]
                beyond = found["cpu"] - phases.get("own work", 0.0)
                split = ", ".join(f"{name} {s:.2f}" for name, s in phases.items() if s >= 0.005)
                print(
                    f"| {photographs * 2 * K:,} | {title} | {found['seconds']:.1f}"
                    f" | {found['cpu']:.1f} | {beyond:.1f} | {found['MB']} | {split} |",
                    flush=True,
                )


main = Command(RerunBenchmark, run, name="python -m benchmarks.rerun", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
