"""Blocks of the training step one by one: the SR network's and CLIP's, written in several ways.

Each is timed forward and backward at the size of the paper's setting, in bfloat16, launched as one
CUDA graph. A step has 69 dense blocks, and 48 blocks of CLIP's image encoder at the larger size.
"""

from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.device.networks import free, peak_gb, rate
from benchmarks.device.profiling import profiled
from benchmarks.device.record import Part
from lasr.device import autocast, pick_device
from trainer.models.compiled import WARM_UP, Captured
from trainer.models.rrdb import RRDB

Forward = Callable[[Tensor], Tensor]


def measure(part: Part) -> None:
    """Convolutions of a dense block alone, dense blocks, and blocks of CLIP."""
    device = pick_device(part.device)  # type: ignore[arg-type]
    torch.backends.cudnn.benchmark = True  # as in lasr train
    torch.manual_seed(0)
    pictures, side = (2, 8) if part.small else (16, 56)
    x = torch.randn(pictures, 64, side, side, device=device)
    x = x.to(torch.bfloat16, memory_format=torch.channels_last)

    def convolutions() -> None:
        for inputs, outputs in ((64, 32), (160, 32), (192, 64), (64, 192), (32, 160), (192, 192)):
            convolution(part, x, inputs, outputs)

    part.attempt("convolutions", convolutions)
    network: Any = RRDB(64, 1, 32).to(device)
    block: Any = network.to(memory_format=torch.channels_last).body[0].rdb1
    ways: dict[str, Forward] = {
        "as it is": block,
    }
    if not part.small:
        ways |= {f"{name}, compiled": torch.compile(way) for name, way in ways.items()}
    for name, way in ways.items():
        part.attempt(name, lambda n=name, w=way: timed(part, f"dense block, {n}", w, block, x))  # type: ignore[misc]
    width, tokens = (64, 17) if part.small else (1024, 257)
    heads = width // 64
    for precision in ("autocast", "bfloat16 weights"):
        clip = open_clip.transformer.ResidualAttentionBlock(
            width, heads, act_layer=open_clip.transformer.QuickGELU
        ).to(device)
        if precision == "bfloat16 weights":
            clip = clip.bfloat16()
        y = torch.randn(pictures, tokens, width, device=device, dtype=torch.bfloat16)
        for frozen in (False, True):
            clip.eval().requires_grad_(not frozen)
            some: dict[str, Forward] = {"": clip}
            if not part.small and precision == "bfloat16 weights":
                some[", compiled"] = torch.compile(clip, dynamic=False)
            for how, forward in some.items():
                name = f"CLIP block, {precision}{', frozen' * frozen}{how}"
                cast = precision == "autocast"
                part.attempt(name, lambda n=name, f=forward, c=cast: timed(part, n, f, clip, y, c))  # type: ignore[misc] # noqa: B023


def convolution(part: Part, x: Tensor, inputs: int, outputs: int) -> None:
    """A 3x3 convolution on its own: forward, and the two products of its backward pass."""
    shape = (x.shape[0], inputs, *x.shape[2:])
    picture = torch.randn(shape, device=x.device).to(x.dtype, memory_format=torch.channels_last)
    weight = torch.randn(outputs, inputs, 3, 3, device=x.device) / (9 * inputs) ** 0.5
    weight = weight.to(x.dtype, memory_format=torch.channels_last)
    gradient = F.conv2d(picture, weight, padding=1)

    def backward(*wanted: bool) -> Tensor:
        found: list[Tensor | None] = torch.ops.aten.convolution_backward(
            gradient, picture, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, wanted
        )
        return next(tensor for tensor in found if tensor is not None)

    arithmetic = 2 * 9 * inputs * outputs * x[:, 0].numel()
    for name, work in (
        ("forward", lambda: F.conv2d(picture, weight, padding=1)),
        ("of its input", lambda: backward(True, False, False)),
        ("of its weights", lambda: backward(False, True, False)),
    ):
        milliseconds = rate(launched(work, x.device), x.device, 0.15)
        part.row(f"convolution {inputs} to {outputs}, {name}", milliseconds, "ms",
                 **{"TFLOP/s": arithmetic / milliseconds / 1e9})  # fmt: skip


def timed(
    part: Part, name: str, forward: Forward, module: nn.Module, x: Tensor, cast: bool = True
) -> None:
    """Time a block forward and backward, with the gradients of its weights."""
    free(x.device)
    start = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    toward = torch.randn_like(x)

    def work() -> Tensor:
        module.zero_grad()
        start.grad = None
        with autocast(x.device, "bfloat16" if cast else "float32"):
            y = forward(start)
        y.backward(toward)
        return y.detach()

    run = launched(work, x.device)
    part.row(name, rate(run, x.device, 0.3), "ms", peak_GB=peak_gb(x.device))
    if x.is_cuda:
        part.text(name, profiled(run, x.device, 14).split("operators by host")[0])


def launched(work: Callable[[], Tensor], device: torch.device) -> Callable[[], object]:
    """The work as a CUDA graph; on a CPU as it is."""
    if device.type != "cuda":
        return work
    captured = Captured(work)
    for _ in range(WARM_UP + 1):
        captured()
    return captured
