"""What `lasr upscale` would do, how long it takes and what memory. Nothing is written.

Time and memory of the network are measured on one tile; the rest is arithmetic.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lasr.device import device_name, pick_device
from lasr.errors import UserError, in_bytes
from lasr.pictures.find import check_regular
from lasr.pictures.read import TooLarge, limited, picture_size
from lasr.system.calls import resident_memory
from lasr.terminal.summary import duration
from lasr.weights.locate import Located
from trainer.upscale.config import UpscaleConfig
from trainer.upscale.picture import Target, Upscaling, target
from trainer.upscale.resample import LANCZOS, STRIP
from trainer.upscale.results import enlargement, is_done, software_of
from trainer.upscale.run import start
from trainer.upscale.tiles import Tiling

_MEASURED = 160  # largest side of the tile that is measured on a CPU, where a whole one is slow
_WARM_UP = 32
_RESIZING = 14  # bytes per value of a strip that is resized: 16 bit, and three copies as floats
_STRIPS = 3  # in memory at once: computed, waiting, being compressed
_SAMPLE = 0.002  # seconds between two looks at the memory


@dataclass
class _Work:
    """What is to be done, by the headers of the pictures."""

    pictures: dict[Path, tuple[tuple[int, int], Target]] = field(default_factory=dict)
    existing: int = 0
    failures: list[str] = field(default_factory=list)


def dry_run(results: dict[Path, Path], located: Located, config: UpscaleConfig) -> list[str]:
    """The lines of a dry run. Raises UserError: a picture would fail, or nothing would work."""
    upscaling = start(located, config)
    work = _look(results, located, upscaling)
    if work.failures:
        count = f"{len(work.failures)} of {len(results)} pictures would fail"
        raise UserError(f"{count}: {'. '.join(work.failures)}")
    existing = f", {work.existing} exist already" if work.existing else ""
    lines = [
        f"pictures: {len(work.pictures)} to upscale{existing}",
        f"results:  {enlargement(upscaling.scale, config)}, {config.format}, in {config.out}",
    ]
    if not work.pictures:
        return lines
    (width, height), aim = max(work.pictures.values(), key=lambda one: one[1].width * one[1].height)
    lines[1] += f"; the largest from {width}x{height} to {aim.width}x{aim.height} pixels"
    return [*lines, *_costs(work, located, upscaling)]


def _look(results: dict[Path, Path], located: Located, upscaling: Upscaling) -> _Work:
    """Read the headers, and compare the results that exist."""
    config, work = upscaling.config, _Work()
    for path, result in results.items():
        try:
            check_regular(path)
            software = software_of(located.identity, path, upscaling.scale, config)
            if is_done(result, software, config.overwrite):
                work.existing += 1
                continue
            size = picture_size(path)
            limited(config.max_pixels)(*size)
            work.pictures[path] = size, target(*size, upscaling.scale, config)
        except (UserError, OSError, TooLarge) as error:
            text = str(error)
            work.failures.append(text if str(path) in text else f"{path}: {text}")
    return work


def _costs(work: _Work, located: Located, upscaling: Upscaling) -> list[str]:
    """What the network runs on, how long it takes, and the memory at its peak."""
    config, tiling = upscaling.config, upscaling.tiling
    device = pick_device(config.device)
    passes = [
        (upscaling.scale**n * height, upscaling.scale**n * width)
        for (width, height), aim in work.pictures.values()
        for n in range(aim.passes)
    ]
    tiles = sum(_tiles(height, width, tiling) for height, width in passes)
    area = sum(
        _tiles(height, width, tiling) * tiling.window(height) * tiling.window(width)
        for height, width in passes
    )
    window = max(tiling.window(height) * tiling.window(width) for height, width in passes)
    side = min(int(window**0.5), _MEASURED if device.type == "cpu" else window)
    seconds, rise = _measure(upscaling, side, device)
    needed = rise * window // side**2
    pixels = max(_picture_bytes(size, aim, upscaling) for size, aim in work.pictures.values())
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        memory = f"{in_bytes(needed)} of the GPU's {in_bytes(total)}, "
        memory += f"and {in_bytes(resident_memory() + pixels)} of this process"
    else:
        memory = f"about {in_bytes(resident_memory() + needed + pixels)}, of which the largest"
        memory += f" tile takes {in_bytes(needed)} and the largest picture {in_bytes(pixels)}"
    several = f"{tiles} tile{'s' * (tiles > 1)}"
    return [
        f"network:  {located.name} on {device_name(device)}, {several} of at most {tiling.tile}"
        f" pixels with {tiling.overlap} around them",
        f"time:     about {duration(seconds * area / side**2)} for the network, measured on a tile"
        f" of {side}x{side} ({seconds:.2g} s); transparency by the network doubles it",
        f"memory:   {memory}",
    ]


def _tiles(height: int, width: int, tiling: Tiling) -> int:
    return -(-height // tiling.step(height)) * -(-width // tiling.step(width))


def _measure(upscaling: Upscaling, side: int, device: torch.device) -> tuple[float, int]:
    """Seconds that the network takes for side x side pixels, and bytes that it needs meanwhile."""
    tile = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    def seconds() -> float:
        started = time.perf_counter()
        upscaling.engine(tile).flatten()[0].item()  # waits for the device
        return time.perf_counter() - started

    with torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            seconds()  # tunes its kernels
            return seconds(), torch.cuda.max_memory_reserved(device)
        if upscaling.config.engine == "compile":
            seconds()  # compiles for this size
        upscaling.engine(tile[..., :_WARM_UP, :_WARM_UP].contiguous())
        return _with_rise(seconds)


def _with_rise(measured: Callable[[], float]) -> tuple[float, int]:
    """What a function returns, and by how many bytes this process grew while it ran.

    The peak that the system records would be that of loading the network.
    """
    before = highest = resident_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_SAMPLE):
            highest = max(highest, resident_memory())

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        result = measured()
    finally:
        done.set()
        thread.join()
    return result, highest - before


def _picture_bytes(size: tuple[int, int], aim: Target, upscaling: Upscaling) -> int:
    """Memory of a picture and its result, in 16 bit between the steps, of three channels."""
    (width, height), config, scale = size, upscaling.config, upscaling.scale
    before = int(scale ** (aim.passes - 1))
    wide, high = before * width, before * height  # what the last pass is given
    strips = _STRIPS * 6 * scale**2 * upscaling.tiling.step(high) * wide
    if config.colour_fix or (aim.width, aim.height) != (scale * wide, scale * high):
        rows = STRIP * max(scale * high / aim.height, 1) + 2 * LANCZOS
        strips += round(rows * scale * wide * 3 * _RESIZING)
    collected = 0 if config.format == "png" else 3 * aim.width * aim.height
    return 3 * width * height + (6 * wide * high if aim.passes > 1 else 0) + strips + collected
