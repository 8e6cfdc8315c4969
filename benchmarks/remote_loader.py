"""Loading from object storage beside loading from a disk, for `benchmarks.loader --latency`.

The same manifest is read from a local disk and from a server on loopback that answers each request
after a delay. A training step is a pause of `--step` milliseconds after each batch; 0 reads as fast
as possible, which is the ceiling. "cold" begins with an empty cache, "warm" with all of it there.
Each reading is a process of its own.
"""

import os
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.s3_server import serving
from schemas.parquet import ROW_GROUP, table_writer

BATCH = 16  # pairs


@dataclass(frozen=True)
class Reading:
    """What one process measured."""

    rate: float  # patches per second after the first batch, pauses included
    first: float  # seconds to the first batch, with opening
    work: float  # milliseconds of CPU time per patch
    fetched: float  # MB
    requests: int


def enlarged(manifest: Path, folder: Path, rows: int) -> Path:
    """A manifest of `rows` rows that repeats a smaller one, each time as other photographs.

    manifest: a folder. It is returned if it has so many.
    """
    if sum(pq.read_metadata(file).num_rows for file in manifest.glob("*.parquet")) >= rows:
        return manifest
    table = pq.read_table(manifest)
    folder.mkdir(parents=True)
    part_rows, written, part, turn = 16 * ROW_GROUP, 0, 0, 0
    waiting = table.slice(0, 0)
    while written < rows:
        with table_writer(folder / f"{part}.parquet", table.schema) as write:
            for _ in range(part_rows // ROW_GROUP):
                while len(waiting) < ROW_GROUP:
                    waiting = pa.concat_tables([waiting, _renamed(table, turn)])
                    turn += 1
                write(waiting.slice(0, ROW_GROUP).combine_chunks())
                waiting = waiting.slice(ROW_GROUP)
                written += ROW_GROUP
                if written >= rows:
                    break
        part += 1
    return folder


def _renamed(table: pa.Table, turn: int) -> pa.Table:
    for name in ("image_id", "patch_id"):
        number = table.schema.get_field_index(name)
        ids = pc.binary_join_element_wise(
            f"{turn:08x}", pc.utf8_slice_codeunits(table[name], 8), ""
        )
        table = table.set_column(number, table.schema.field(number), ids)
    return table


def read(
    where: str, cache: str, environment: dict[str, str], steps: int, pause: float, workers: int
) -> Reading:
    """Make the batches of a run, with a pause after each. In a process of its own."""
    os.environ |= environment
    import torch

    from lasr.storage.config import StorageConfig, address
    from lasr.storage.manifest import open_manifest
    from trainer.data.dataset import COLUMNS, Patches

    torch.set_num_threads(1)
    began, work = time.perf_counter(), time.process_time()
    settings = StorageConfig(cache=Path(cache))
    patches = Patches(open_manifest(address(where), COLUMNS, settings))
    steps = min(steps, len(patches) // BATCH)
    first = 0.0
    for _ in patches.batches(0, steps, BATCH, workers):
        first = first or time.perf_counter() - began
        time.sleep(pause)
    seconds = time.perf_counter() - began - first
    traffic, count = settings.access.traffic, 2 * BATCH * steps
    return Reading(
        2 * BATCH * (steps - 1) / seconds,
        first,
        1000 * (time.process_time() - work) / count,
        traffic.bytes / 1e6,
        traffic.requests,
    )


def compare(
    manifest: Path, folder: Path, latency: float, pauses: list[float], steps: int, rounds: int,
    workers: int,
) -> None:  # fmt: skip
    """Print the table. latency, pauses: ms."""
    inside = folder / "buckets" / "bucket" / "patches.parquet"
    inside.parent.mkdir(parents=True)
    shutil.copytree(manifest, inside)
    size = sum(file.stat().st_size for file in inside.iterdir()) / 1e6
    print(f"{size:.0f} MB in {len(list(inside.iterdir()))} parts; {latency:g} ms a request")
    print(
        "step ms  from          patches/s (spread)   ratio  first s  CPU ms  fetched MB  requests"
    )
    with serving(folder / "buckets", latency / 1000) as s3:
        for pause in pauses:
            found: dict[str, list[Reading]] = {"disk": [], "S3, cold": [], "S3, warm": []}
            for number in range(rounds):
                cache = folder / f"cache-{pause:g}-{number}"
                for name in found:
                    where = str(inside) if name == "disk" else "s3://bucket/patches.parquet"
                    arguments = (where, str(cache), s3.environment, steps, pause / 1000, workers)
                    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                        found[name].append(process.submit(read, *arguments).result())
                shutil.rmtree(cache)
            usual = statistics.median(reading.rate for reading in found["disk"])
            for name, readings in found.items():
                _print(pause, name, readings, usual)


def _print(pause: float, name: str, readings: list[Reading], usual: float) -> None:
    rates = sorted(reading.rate for reading in readings)
    rate = statistics.median(rates)
    first, work, fetched, requests = (
        statistics.median(getattr(reading, part) for reading in readings)
        for part in ("first", "work", "fetched", "requests")
    )
    spread = f"{rate:.0f} ({rates[0]:.0f} to {rates[-1]:.0f})"
    print(
        f"{pause:7g}  {name:10} {spread:>22} {rate / usual:7.3f} {first:8.1f} {work:7.2f}"
        f" {fetched:11.0f} {requests:9.0f}",
        flush=True,
    )
