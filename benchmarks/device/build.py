"""A build end to end on generated photographs of 2K, and a loop over images beside it."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import build as side_by_side
from benchmarks.device.networks import clip_folder, depth_folder, free, peak_gb
from benchmarks.device.record import Part
from lasr.device import pick_device
from pipeline.config import BuildConfig

SHAPES = ((3, 2), (4, 3), (3, 2), (2, 3), (3, 2), (4, 3), (3, 2))  # common ones, 7 of 10


def measure(part: Part) -> None:
    """Photographs per second, where the time goes, and how often the depth network runs."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    number, long = (4, 300) if part.small else (128, 2040)
    source = part.folder / "source"
    from pipeline.demo import copy_photographs

    copy_photographs(source)
    target = part.folder / "photographs"
    target.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_make, [(source, target, i, long) for i in range(number)]))
    size = "tiny" if part.small else "small"
    config = BuildConfig(
        images=[str(target)], out=str(part.folder / "built" / "patches.parquet"),
        depth=str(depth_folder(part.folder, size, device)),
        clip=str(clip_folder(part.folder, part.small, device)),
        device=part.device, shard_size=64, k=2 if part.small else 8,
    )  # fmt: skip

    def build() -> None:
        from pipeline.build.models import load_models
        from pipeline.build.plan import prepare

        free(device)
        loaded = load_models(prepare(config).job)
        spent: dict[str, float] = defaultdict(float)
        calls: dict[str, int] = defaultdict(int)
        depth, captioner = loaded.depth, loaded.captioner
        warm = [
            depth.prepare(np.asarray(Image.open(path))) for path in sorted(target.iterdir())[:1]
        ]
        depth.predict_some(warm)
        captioner.features([captioner.prepare(np.zeros((56, 56, 3), np.uint8))])
        object.__setattr__(depth, "predict", _timed(depth.predict, "depth", spent, calls))
        captioner.features = _timed(captioner.features, "captions", spent, calls)  # type: ignore[method-assign]
        captioner.rank = _timed(captioner.rank, "rank", spent, calls)  # type: ignore[method-assign]
        object.__setattr__(depth, "prepare", _timed(depth.prepare, "prepare depth", spent, calls))
        captioner.prepare = _timed(captioner.prepare, "prepare captions", spent, calls)  # type: ignore[method-assign]
        from pipeline.build.workers import Worker

        Worker.read = _timed(Worker.read, "read", spent, calls)  # type: ignore[method-assign]
        Worker.crop = _timed(Worker.crop, "crop", spent, calls)  # type: ignore[method-assign]
        cpu, started = time.process_time(), time.perf_counter()
        side_by_side.run_stages(config)
        seconds = time.perf_counter() - started
        busy = (time.process_time() - cpu) / seconds
        part.row(f"build, {long} pixels", number / seconds, "photographs/s", cores_busy=busy,
                 peak_GB=peak_gb(device), photographs=number, workers=config.workers)  # fmt: skip
        for name, total in spent.items():
            part.row(f"in {name}, all threads", 1e3 * total / number, "ms a photograph",
                     calls_a_photograph=calls[name] / number)  # fmt: skip

    def loop() -> None:
        some = sorted(target.iterdir())[: 1 if part.small else 5]
        folder = part.folder / "few"
        folder.mkdir()
        for path in some:
            os.link(path, folder / path.name)
        few = config.model_copy(
            update={"images": [str(folder)], "out": str(part.folder / "loop.parquet")}
        )
        models = side_by_side.PlainModels(few)
        models.distance(Image.open(some[0]))
        started = time.perf_counter()
        side_by_side.run_loop(few, models)
        seconds = time.perf_counter() - started
        part.row(f"plain loop, {long} pixels", len(some) / seconds, "photographs/s")

    part.attempt("build", build)
    part.attempt("loop", loop)


def _timed(
    function: Callable[..., Any], name: str, spent: dict[str, float], calls: dict[str, int]
) -> Callable[..., Any]:
    lock = threading.Lock()

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            with lock:
                spent[name] += time.perf_counter() - started
                calls[name] += 1

    return timed


def _make(job: tuple[Path, Path, int, int]) -> None:
    """One photograph: a crop of a real one, 7 of 10 in a common shape, the others in any."""
    source, target, number, long = job
    rng = np.random.default_rng(number)
    paths = sorted(source.iterdir())
    image = Image.open(paths[number % len(paths)]).convert("RGB")
    if number % 10 < 7:
        wide, high = map(float, SHAPES[number % 10])
    else:
        wide, high = rng.uniform(1, 2), 1
    scale = long / max(wide, high)
    size = max(240, round(wide * scale)), max(240, round(high * scale))
    left, top = rng.random(2) * 0.2 * np.array(image.size)
    crop = image.crop((left, top, left + 0.8 * image.width, top + 0.8 * image.height))
    crop.resize(size, Image.Resampling.BICUBIC).save(target / f"{number:05}.jpg", quality=92)
