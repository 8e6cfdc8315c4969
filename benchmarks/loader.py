"""Measure how fast patches are loaded: from a manifest, and from a folder of PNG crops.

python -m benchmarks.loader                                   # a small generated data set
python -m benchmarks.loader --manifest data/patches.parquet --rounds 1
python -m benchmarks.loader --latency 20                      # from object storage, beside a disk

The folder holds the same patches as PNG files and a JSON file of captions. It is read in the usual
way: a torch DataLoader whose worker processes open files with Pillow and apply torchvision's
transforms. If Hugging Face `datasets` is installed, its streaming Parquet reader runs as well. All
yield float tensors in [0, 1], LR and HR of one photograph together (`datasets`: rows in stored
order). A round is one epoch in a new process, and the loaders take turns. Rates exclude the first
batch.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.remote_loader import compare, enlarged
from lasr.cli import Command
from schemas.manifest import Manifest, open_manifest
from trainer.config import Degradation
from trainer.data.dataset import COLUMNS, Patches

try:
    import datasets
except ImportError:
    datasets = None

BATCH = 16  # pairs
FORK = "fork"  # torch's default on Linux, except in a spawned process


class LoaderConfig(BaseModel):
    """Parameters of `benchmarks.loader`."""

    manifest: Path | None = Field(
        None, description="manifest to read (default: one made of sample photographs)"
    )
    photographs: int = Field(64, ge=7, description="sample photographs, without --manifest")
    rounds: int = Field(3, ge=1, description="epochs of each loader, in turn")
    workers: int = Field(2, ge=1, description="threads, or worker processes of the DataLoader")
    seed: int = Field(0, ge=0, description="seed of shuffling")
    latency: float = Field(
        0, ge=0, description="ms that a request takes; compares object storage with a disk instead"
    )
    step: list[float] = Field(
        [100.0, 0.0], description="with --latency: ms of a training step; 0: as fast as it can"
    )
    steps: int = Field(400, ge=2, description="with --latency: training steps")
    rows: int = Field(16_384, ge=256, description="with --latency: rows, 0.9 GB of sample patches")


@dataclass(frozen=True)
class Result:
    """Measurements of one epoch of one loader."""

    rate: float  # decoded patches per second
    work: float  # milliseconds of CPU time per patch, less sensitive to other processes
    first: float  # seconds to the first batch, including opening
    read: float  # MB read from files, including cached pages
    memory: float  # MB above the start, process and workers, shared pages once


def from_manifest(
    config: LoaderConfig, folder: Path, degradation: Degradation = "none"
) -> Iterator[int]:
    """Yield batch sizes from the trainer's loader."""
    assert config.manifest
    patches = Patches(open_manifest(config.manifest, COLUMNS), config.seed, degradation)
    for batch in patches.batches(0, len(patches) // BATCH, BATCH, config.workers):
        yield len(batch.lr) + len(batch.hr)


def from_manifest_degraded(config: LoaderConfig, folder: Path) -> Iterator[int]:
    """Yield batch sizes from the trainer's loader with --degrade realesrgan."""
    return from_manifest(config, folder, "realesrgan")


class PngFolder(Dataset[tuple[object, ...]]):
    """A usual Dataset: files by name, captions in a JSON file, a transform."""

    def __init__(self, folder: Path, seed: int):
        self.captions = json.loads((folder / "captions.json").read_text())
        self.far = sorted(folder.glob("*/lr_*.png"))
        self.near = defaultdict(list)
        for path in sorted(folder.glob("*/hr_*.png")):
            self.near[path.parent].append(path)
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomVerticalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.far)

    def __getitem__(self, index: int) -> tuple[object, ...]:
        far = self.far[index]
        near = self.near[far.parent] or self.near[next(iter(self.near))]
        pair = far, near[self.rng.integers(len(near))]
        pictures = [self.transform(Image.open(path).convert("RGB")) for path in pair]
        return (*pictures, *(self.captions[f"{p.parent.name}/{p.name}"] for p in pair))


def from_folder(config: LoaderConfig, folder: Path) -> Iterator[int]:
    """Yield batch sizes from a torch DataLoader over PNG files."""
    dataset = PngFolder(folder, config.seed)
    for far, near, *_ in DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=config.workers,
        drop_last=True,
        multiprocessing_context=FORK,
    ):
        yield len(far) + len(near)


def _to_tensors(rows: list[dict[str, Any]]) -> list[Any]:
    arrays = [np.array(row["image"]) for row in rows]
    return [torch.from_numpy(array).permute(2, 0, 1).float().div_(255) for array in arrays]


def from_datasets(config: LoaderConfig, folder: Path) -> Iterator[int]:
    """Yield batch sizes from Hugging Face `datasets`, streaming, with its shuffle buffer."""
    assert config.manifest
    files = [str(file) for file in open_manifest(config.manifest).files]
    stream = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, columns=["image", "caption"]
    )
    stream = stream.cast_column("image", datasets.Image()).shuffle(config.seed, buffer_size=1000)
    workers = min(config.workers, len(files))
    for rows in DataLoader(
        stream,
        batch_size=2 * BATCH,
        num_workers=workers,
        collate_fn=_to_tensors,
        drop_last=True,
        multiprocessing_context=FORK,
    ):
        yield len(rows)


LOADERS: dict[str, Callable[[LoaderConfig, Path], Iterator[int]]] = {
    "manifest": from_manifest,
    "folder of PNGs": from_folder,
    "datasets, streaming": from_datasets,
    "manifest, degraded": from_manifest_degraded,
}


def measure(name: str, config: LoaderConfig, folder: Path) -> Result:
    """Run one epoch of a loader in this process and its children."""
    torch.set_num_threads(1)
    read_before, memory_before, work_before = _read(), _memory(), sum(os.times()[:4])
    first, count, memory, start = 0.0, 0, 0.0, time.perf_counter()
    for number, patches in enumerate(LOADERS[name](config, folder)):
        first = first or time.perf_counter() - start
        count += patches
        if number % 16 == 0:
            read, memory = _read(), max(memory, _memory())
    rate = (count - 2 * BATCH) / (time.perf_counter() - start - first)
    work = (sum(os.times()[:4]) - work_before) / count * 1000
    # Finished workers are counted in their parent, running ones by themselves.
    return Result(rate, work, first, max(read, _read()) - read_before, memory - memory_before)


def _family() -> list[Path]:
    """Return the /proc folders of this process and its children."""
    own = Path("/proc/self").resolve()
    children = (own / "task" / own.name / "children").read_text().split()
    return [own, *(Path("/proc") / child for child in children)]


def _number(path: Path, name: str) -> float:
    try:
        lines = path.read_text().splitlines()
    except OSError:  # a worker that has just ended
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith(name)), 0.0)


def _read() -> float:
    return sum(_number(process / "io", "rchar:") for process in _family()) / 1e6


def _memory() -> float:
    return sum(_number(process / "smaps_rollup", "Pss:") for process in _family()) / 1e3


def make_manifest(folder: Path, count: int) -> Path:
    """Build a manifest from `count` crops of sample photographs. Returns its path."""
    from pipeline.build.plan import plan_build, prepare
    from pipeline.build.publish import finish
    from pipeline.build.shard import build_shard
    from pipeline.config import BuildConfig
    from pipeline.demo import copy_photographs

    samples = [Image.open(path).convert("RGB") for path in copy_photographs(folder / "samples")]
    (folder / "photographs").mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        picture = samples[number % len(samples)]
        width, height = min(picture.width, 512), min(picture.height, 384)
        x, y = rng.integers(picture.width - width + 1), rng.integers(picture.height - height + 1)
        crop = picture.crop((int(x), int(y), int(x) + width, int(y) + height))
        crop.save(folder / "photographs" / f"{number:05}.jpg", quality=95)
    config = BuildConfig(
        images=[str(folder / "photographs")],
        out=folder / "patches.parquet",
        profile="test",
        shard_size=max(count // 4, 1),
    )
    build = plan_build(prepare(config))
    finish(build, [build_shard(build.job, shard) for shard in build.plan.to_do])
    return folder / "patches.parquet"


def write_folder(manifest: Manifest, folder: Path) -> None:
    """Write the patches of a manifest as PNG files, a folder per photograph, and captions.json."""
    captions = {}
    for file in manifest.files:
        for batch in pq.ParquetFile(file).iter_batches(
            256, columns=["image_id", "role", "rank", "caption", "image"]
        ):
            for row in batch.to_pylist():
                name = f"{row['image_id'][:16]}/{row['role']}_{row['rank']}.png"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(row["image"]["bytes"])
                captions[name] = row["caption"]
    (folder / "captions.json").write_text(json.dumps(captions))


def used_columns(manifest: Manifest) -> float:
    """Return the MB of pictures and captions in a manifest: the least that must be read."""
    total = 0
    for file in manifest.files:
        footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups):
            columns = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
            total += sum(
                column.total_compressed_size
                for column in columns
                if column.path_in_schema in ("image.bytes", "caption")
            )
    return total / 1e6


def run(config: LoaderConfig) -> None:
    """Make the data, let the loaders take turns, print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = config.manifest or make_manifest(folder, config.photographs)
        if config.latency:
            large = enlarged(path, folder / "enlarged", config.rows)
            compare(
                large, folder, config.latency, config.step, config.steps, config.rounds,
                config.workers,
            )  # fmt: skip
            return
        config = config.model_copy(update={"manifest": path})
        manifest = open_manifest(path)
        write_folder(manifest, folder / "crops")
        names = [n for n in LOADERS if datasets or "datasets" not in n]
        results: dict[str, list[Result]] = {name: [] for name in names}
        for _ in range(config.rounds):
            for name in names:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    done = process.submit(measure, name, config, folder / "crops")
                    results[name].append(done.result())
        print(f"used columns: {used_columns(manifest):.1f} MB; {config.workers} workers")
        head = "patches/s (spread)", "ratio", "work", "first", "read", "memory"
        print("{:20} {:>24} {:>6} {:>8} {:>7} {:>9} {:>8}".format("", *head))
        usual = statistics.median(r.rate for r in results["folder of PNGs"])
        for name, rounds in results.items():
            rates = sorted(r.rate for r in rounds)
            rate, work, first, read, memory = (
                statistics.median(getattr(r, part) for r in rounds)
                for part in ("rate", "work", "first", "read", "memory")
            )
            spread = f"{rate:.0f} ({rates[0]:.0f} to {rates[-1]:.0f})"
            print(
                f"{name:20} {spread:>24} {rate / usual:5.2f}x {work:5.2f} ms {first:6.2f}s"
                f" {read:6.1f} MB {memory:5.0f} MB"
            )


main = Command(LoaderConfig, run, name="python -m benchmarks.loader", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
