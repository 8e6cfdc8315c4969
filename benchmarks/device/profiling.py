"""Where a device's time goes: kernels by kind, and the longest of them."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.device.networks import wait

# The first that fits a kernel's name names its kind.
KINDS = {
    "attention": r"flash|fmha|attention|softmax",
    "optimizer": r"multi_tensor|fusedadam|lpnorm|foreach",
    "pooling and resizing": r"pool|upsample|interp",
    "convolution": r"conv|fprop|dgrad|wgrad|implicit|tonhwc|tonchw|winograd",
    "matrix product": r"gemm|gemv|nvjet|cutlass|cublas|splitk|matmul|triton_tem",
    "fused": r"^triton_",
    "layer norm": r"layer_?norm|gammabeta",
    "reduction": r"reduce",
    "concatenation": r"catarray|cat_",
    "copy and cast": r"copy|memcpy|memset|fill",
    "elementwise": r"elementwise|index|where|gather|scatter|cunn",
}


def kind_of(kernel: str) -> str:
    """The kind of work that a kernel does, by its name."""
    name = kernel.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


def by_kind(kernels: Iterable[tuple[str, float, int]]) -> dict[str, tuple[float, int]]:
    """Time and calls of each kind of kernels, the longest first. kernels: name, time, calls."""
    found: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for name, time, calls in kernels:
        before = found[kind_of(name)]
        found[kind_of(name)] = before[0] + time, before[1] + calls
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def profiled(work: Callable[[], object], device: torch.device, rows: int = 22) -> str:
    """A table of the kinds of kernels, and of those that take most of the device's time.

    On a CPU, where there are no kernels, the operators.
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        work()
        wait(device)
    averages = found.key_averages()

    def of_device(event: Any) -> float:
        return float(getattr(event, "self_device_time_total", 0.0))

    def of_host(event: Any) -> float:
        return float(event.self_cpu_time_total)

    on_device = [e for e in averages if str(e.device_type).endswith("CUDA")]
    # Not the regions of record_function, which span the kernels in them.
    kernels = [e for e in on_device if not getattr(e, "is_user_annotation", False)]
    kinds = by_kind((e.key, of_device(e), e.count) for e in kernels)
    lines = [f"{time / 1e3:9.2f} ms {calls:6d}  {kind}" for kind, (time, calls) in kinds.items()]
    for title, events, key in (
        ("kernels by device time", kernels, of_device),
        ("operators by host time", [e for e in averages if e not in on_device], of_host),
    ):
        total = sum(map(key, events))
        lines.append(f"{title}: {total / 1e3:.1f} ms in {sum(e.count for e in events)} calls")
        lines += [
            f"{key(event) / 1e3:9.2f} ms {event.count:6d}  {event.key[:110]}"
            for event in sorted(events, key=key, reverse=True)[:rows]
        ]
    return "\n".join(lines)
