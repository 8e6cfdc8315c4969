"""A training step at the paper's setting: precisions, launches, memory; beside a plain one."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch._dynamo.utils

from benchmarks import train_step
from benchmarks.device.networks import free, peak_gb, step_networks, wait
from benchmarks.device.profiling import profiled
from benchmarks.device.record import Part
from lasr.device import autocast, pick_device
from trainer.config import TrainConfig
from trainer.models.half import HalfWeights
from trainer.step import TrainStep

STEPS = 8  # of a round, launched one after the other
FIRST = 6  # of each way, whose losses are compared; a graph is captured meanwhile
FLOOR = 21.6  # TFLOP of a step: benchmarks.train_step counts them


class Plain:
    """benchmarks.train_step's plain step behind the interface of ours."""

    def __init__(self, settings: TrainConfig, small: bool, device: torch.device):
        autocast(device, settings.precision)
        self.step = train_step.PlainStep(settings, *step_networks(small, device))

    def __call__(self, batch: Any, tokens: Any) -> torch.Tensor:
        return torch.tensor([sum(self.step(batch).values())])


def measure(part: Part, compiled: bool = False) -> None:
    """Each way of a step, then the regions of one; or the compiled one alone."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    cuda = device.type == "cuda"
    size = 2 if part.small else 16
    torch.backends.cudnn.benchmark = True  # as in lasr train
    batches = [train_step.random_batch(size, seed) for seed in range(2)]
    reference: dict[str, list[float]] = {}

    def settings(precision: str, compile: str = "off", graph: str = "auto") -> TrainConfig:
        chosen = {"precision": precision, "compile": compile, "cuda_graph": graph}
        return TrainConfig.model_validate({"manifest": "none", "batch_size": size} | chosen)

    def way(
        name: str,
        config: TrainConfig,
        plain: bool = False,
        profile: bool = False,
        theirs: bool = False,
        each: bool = False,
    ) -> None:
        """theirs: with open_clip's blocks as they are. each: weights are cast at each use."""
        free(device)
        torch._dynamo.reset()
        torch._dynamo.utils.compilation_time_metrics.clear()
        blocks = "trainer.models.encoders.lean_blocks"
        with mock.patch(blocks, lambda network: None) if theirs else nullcontext():
            networks = step_networks(part.small, device)
        step: Any = Plain(config, part.small, device) if plain else TrainStep(config, *networks)
        del networks
        ours = step if isinstance(step, TrainStep) else None
        if ours and each:
            ours.half_weights = HalfWeights([], None)
        pinned = [_to_pinned(batch, device) for batch in batches]
        tokens = [_pin(ours.texts_of(batch), device) if ours else None for batch in batches]
        started = time.perf_counter()
        totals = []
        for number in range(2 if part.small else FIRST):
            numbers = step(pinned[number % 2], tokens[number % 2])
            total = numbers[ours.names.index("total")] if ours else numbers.sum()
            totals.append(float(total))
        wait(device)
        start = time.perf_counter() - started
        if config.compile != "off":
            phases = torch._dynamo.utils.compilation_time_metrics
            longest = sorted(((sum(t), len(t), n) for n, t in phases.items()), reverse=True)
            lines = [
                f"{seconds:7.2f} s {times:4d}  {what}" for seconds, times, what in longest[:30]
            ]
            part.text(f"{name}, its compilation", "\n".join(lines))
        times = []
        steps = 1 if part.small else STEPS
        for _ in range(1 if part.small else 3):
            started = time.perf_counter()
            for number in range(steps):
                step(pinned[number % 2], tokens[number % 2])
            launched = time.perf_counter() - started
            wait(device)
            times.append(1e3 * (time.perf_counter() - started) / steps)
        milliseconds = statistics.median(times)
        more: dict[str, Any] = {"host_ms": 1e3 * launched / steps, "start_s": start}
        if cuda:
            more |= {
                "peak_GB": peak_gb(device),
                "reserved_GB": torch.cuda.max_memory_reserved() / 1e9,
            }
        if not part.small:
            more["TFLOP/s"] = FLOOR / milliseconds * 1e3
        if not plain:
            expected = reference.setdefault(config.precision, totals)
            pairs = zip(expected, totals, strict=True)
            more["largest_difference_of_a_total"] = max(abs(a - b) for a, b in pairs)
        part.row(name, milliseconds, "ms", **more)
        if profile:
            pair = pinned[0], tokens[0]
            part.text(f"{name}, one step", profiled(lambda: step(*pair), device, 40))

    def regions() -> None:
        free(device)
        step = TrainStep(settings("bfloat16", graph="off"), *step_networks(part.small, device))
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)

        @contextmanager
        def region(name: str) -> Iterator[None]:
            wait(device)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            yield
            wait(device)
            found[name].append((1e3 * (time.perf_counter() - started), peak_gb(device)))

        pinned = _to_pinned(batches[0], device)
        tokens = step.texts_of(pinned)
        step(pinned, tokens)
        step.region = region  # type: ignore[assignment]
        for _ in range(1 if part.small else 4):
            step(pinned, tokens)
        for name, values in found.items():
            times, peaks = zip(*values[len(values) // 4 :], strict=True)
            part.row(f"region {name}, eager", statistics.median(times), "ms", peak_GB=max(peaks))

    def measured(name: str, seconds: float, config: TrainConfig, *of: bool, **how: bool) -> None:
        part.attempt(name, lambda: way(name, config, *of, **how), seconds * cuda)

    if compiled:
        measured("bfloat16, graph", 0, settings("bfloat16"))
        config = settings("bfloat16", "default")
        measured("bfloat16, compiled, graph", 0, config, profile=True)
        return
    eager, graph = settings("bfloat16", graph="off"), settings("bfloat16")
    measured("bfloat16, graph", 0, graph, profile=True)
    measured("bfloat16, weights cast at each use, graph", 7, graph, each=True)
    measured("bfloat16, the same and open_clip's blocks, graph", 7, graph, each=True, theirs=True)
    measured("bfloat16, eager", 10, eager)
    measured("bfloat16, written plainly", 8, graph, True)
    measured("float16, graph", 7, settings("float16"))
    measured("tf32, graph", 10, settings("tf32"))
    part.attempt("regions", regions, 8 * cuda)
    float32 = settings("float32")
    measured("float32, graph", 12, float32)
    measured("float32, written plainly", 15, float32, True)


def _pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _to_pinned(batch: Any, device: torch.device) -> Any:
    import dataclasses

    return dataclasses.replace(batch, lr=_pin(batch.lr, device), hr=_pin(batch.hr, device))
