"""Depth Anything V2: maps per second for Small, Base and Large, by batch size and precision."""

import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.device.networks import depth_folder, free, peak_gb, rate, wait
from benchmarks.device.profiling import profiled
from benchmarks.device.record import Part
from lasr.device import Precision, pick_device
from lasr.weights.locate import locate
from pipeline.stages.depth import load_depth, pack


def measure(part: Part) -> None:
    """Photographs of 3:2; the product's own calls, and the transformers pipeline beside them."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    cuda = device.type == "cuda"
    rng = np.random.default_rng(0)
    side = 96 if part.small else 2040
    photographs = [_photograph(rng, side) for _ in range(8)]

    def network(size: str, precision: Precision, batches: tuple[int, ...]) -> None:
        free(device)
        located = locate(str(depth_folder(part.folder, size, device)), "depth")
        depth = load_depth(located, device, 0, precision)
        started = time.perf_counter()
        prepared = [depth.prepare(photograph) for photograph in photographs]
        each = (time.perf_counter() - started) / len(prepared)
        shape = "x".join(map(str, prepared[0].shape[1:]))
        maps: dict[int, list[np.ndarray]] = {}
        for batch in batches:
            some = prepared[:batch]
            milliseconds = rate(lambda some=some: depth.predict(some), device, 0.5)  # type: ignore[misc]
            maps[batch] = depth.predict(some)
            more: dict[str, Any] = {"peak_GB": peak_gb(device), "prepare_ms": 1e3 * each}
            if batch > 1:
                pairs = [(pack(a), pack(b)) for a, b in zip(maps[1], maps[batch], strict=False)]
                apart = [np.abs(a.astype(int) - b.astype(int)) for a, b in pairs]
                more["of_65535_from_batch_1"] = int(max(a.max() for a in apart))
                more["equal_pixels"] = float(np.mean([(a == 0).mean() for a in apart]))
            if cuda:
                ready = torch.from_numpy(np.stack(some)).to(device)
                more["on_device_per_s"] = 1e3 * batch / _on_device(depth, ready, precision, device)
            what = f"{size}, {precision}, batch {batch}, {shape}"
            part.row(what, 1e3 * batch / milliseconds, "maps/s", **more)
        references.setdefault(size, {})[precision] = maps[1][0]
        if precision != "float32" and "float32" in references[size]:
            apart = [np.abs(maps[1][0] - references[size]["float32"])]
            part.row(f"{size}, {precision}: from float32, mean", float(apart[0].mean()), "of 0..1",
                     most=float(apart[0].max()))  # fmt: skip
        if (size, precision) == ("small", "bfloat16"):
            what = f"{size}, {precision}, batch 1 then 8"
            part.text(what, profiled(lambda: (depth.predict(prepared[:1]), depth.predict(prepared)),
                                     device))  # fmt: skip

    def plainly(size: str) -> None:
        from transformers import pipeline

        free(device)
        located = locate(str(depth_folder(part.folder, size, device)), "depth")
        plain = pipeline("depth-estimation", model=str(located.path), device=device)
        image = Image.fromarray(photographs[0])
        plain(image)
        wait(device)
        started = time.perf_counter()
        for _ in range(5):
            plain(image)
        seconds = time.perf_counter() - started
        part.row(f"{size}, transformers' pipeline, one by one", 5 / seconds, "maps/s")

    references: dict[str, dict[str, np.ndarray]] = {}
    sizes = ["tiny"] if part.small else ["small", "base", "large"]
    for size in sizes:
        batches = (1, 2) if part.small else ((1, 2, 4, 8) if size == "small" else (1, 8))
        precisions: tuple[Precision, ...] = ("bfloat16",)
        if size in ("tiny", "small"):
            precisions = ("float32", "bfloat16")
        for precision in precisions:
            some = batches if precision == "bfloat16" else batches[:1]
            what = f"{size}, {precision}"
            part.attempt(what, lambda s=size, p=precision, b=some: network(s, p, b), 4 * cuda)  # type: ignore[misc]
    part.attempt("plainly", lambda: plainly(sizes[0]), 4 * cuda)


def _on_device(
    depth: Any, batch: torch.Tensor, precision: Precision, device: torch.device
) -> float:
    """Milliseconds of the network alone."""
    from lasr.device import autocast

    cells = dict(zip(depth.predict.__wrapped__.__code__.co_freevars,
                     depth.predict.__wrapped__.__closure__, strict=True))  # fmt: skip
    model = cells["model"].cell_contents
    pictures = batch.float() / 128 - 1

    @torch.inference_mode()
    def work() -> None:
        with autocast(device, precision):
            model(pictures)

    return rate(work, device, 0.4)


def _photograph(rng: np.random.Generator, width: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    size = width, width * 2 // 3
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
