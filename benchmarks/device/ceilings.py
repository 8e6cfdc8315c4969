"""What the device can do at most: a large matrix product, and copies."""

import torch

from benchmarks.device.networks import rate
from benchmarks.device.record import Part
from lasr.device import autocast, device_name, pick_device


def measure(part: Part) -> None:
    """Products in each precision, copies on the device and between it and the host."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    part.row("device", 1, device_name(device))
    side = 256 if part.small else 8192
    for name in ("bfloat16", "float16", "tf32", "float32"):
        if name == "tf32" and device.type == "cpu":
            continue
        dtype = getattr(torch, name, torch.float32)

        def product(dtype: torch.dtype = dtype, name: str = name) -> None:
            autocast(device, name)  # type: ignore[arg-type]
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            milliseconds = rate(lambda: a @ b, device, 0.5)
            part.row(f"matrix product {side}, {name}", 2 * side**3 / milliseconds / 1e9, "TFLOP/s")

        part.attempt(f"product {name}", product)

    def copies() -> None:
        count = 2**16 if part.small else 2**28
        source, target = (torch.randn(count, device=device) for _ in range(2))
        here = torch.randn(count // 4)
        here = here.pin_memory() if device.type == "cuda" else here
        there = here.to(device)
        for what, work, moved in (
            ("on the device, read and written", lambda: target.copy_(source), 2 * source.nbytes),
            ("to the device, pinned", lambda: there.copy_(here, non_blocking=True), here.nbytes),
            ("from the device, pinned", lambda: here.copy_(there, non_blocking=True), here.nbytes),
        ):
            part.row(f"copy {what}", moved / rate(work, device, 0.5) / 1e6, "GB/s")

    part.attempt("copies", copies)
