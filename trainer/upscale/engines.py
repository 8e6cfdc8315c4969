"""What runs a network for inference: PyTorch, compiled PyTorch, or ONNX Runtime."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lasr.errors import UserError, one_line
from schemas.manifest import SCALE
from trainer.models.export import export_onnx, load_onnx
from trainer.models.rrdb import REACH, RRDB
from trainer.upscale.config import EngineName, Precision

# (1, 3, h, w) float32 on the CPU to (1, 3, s h, s w) float32 on the engine's device, not clamped.
Engine = Callable[[Tensor], Tensor]

_STRIP = 64  # rows of features


def make_engine(
    network: nn.Module,
    device: torch.device,
    name: EngineName = "auto",
    precision: Precision = "auto",
    half: bool = True,
) -> Engine:
    """Create the engine `name` for `network`, which is moved to `device` and to channels_last.

    `auto` is `torch`: it starts at once, and no engine measured faster (benchmarks/upscale.py).
    half: whether the network tolerates float16, which precision `auto` then selects on a GPU.

    Raises UserError: the engine is not installed, or the combination does not exist.
    """
    if precision == "float16" and device.type == "cpu":
        raise UserError("--precision float16 needs a GPU", "on a CPU use float32, which is faster")
    if name == "onnx":
        if device.type != "cpu":
            raise UserError("--engine onnx runs on the CPU", "add --device cpu")
        return onnx_engine(network)
    wants_half = precision == "float16" or (precision == "auto" and half and device.type == "cuda")
    start = compiled_engine if name == "compile" else torch_engine
    return start(network, device, torch.float16 if wants_half else torch.float32)


def torch_engine(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    compiled: Callable[[Engine], Engine] = lambda forward: forward,
) -> Engine:
    """Run PyTorch in channels_last, which oneDNN (CPU) and tensor cores (GPU) prefer."""
    network = network.eval().to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
    forward = compiled(partial(_in_strips, network) if isinstance(network, RRDB) else network)

    def run(picture: Tensor) -> Tensor:
        if device.type == "cuda":  # a copy from other memory would wait for all work before it
            picture = picture.pin_memory()
        moved = picture.to(device, dtype, non_blocking=True)
        return forward(moved.contiguous(memory_format=torch.channels_last)).float()

    return run


def _in_strips(network: RRDB, x: Tensor) -> Tensor:
    """Compute network(x) with a fifth of the memory.

    `reconstruct` works on 16 times as many pixels as `extract`, but each depends only on REACH
    pixels around it, so it runs on one strip of rows after the other.
    """
    features = network.extract(x)
    height, strips = x.shape[2], []
    for top in range(0, height, _STRIP):
        first, bottom = max(top - REACH, 0), min(top + _STRIP, height)
        upscaled = network.reconstruct(features[:, :, first : bottom + REACH])
        strips.append(upscaled[:, :, SCALE * (top - first) : SCALE * (bottom - first)])
    return torch.cat(strips, dim=2)


def compiled_engine(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Engine:
    """Run PyTorch's inductor; needs a C++ compiler (CPU) or Triton (GPU) and a minute to start."""
    mode = "reduce-overhead" if device.type == "cuda" else "default"  # the former: CUDA graphs
    run = torch_engine(network, device, dtype, partial(torch.compile, mode=mode))

    def checked(picture: Tensor) -> Tensor:
        try:
            return run(picture)
        except Exception as error:
            if isinstance(error, torch._dynamo.exc.TorchDynamoException):
                problem = f"--engine compile: {one_line(error)}"
                raise UserError(problem, "use --engine torch") from error
            raise

    return checked


def onnx_engine(network: nn.Module) -> Engine:
    """Run ONNX Runtime on the CPU.

    Raises UserError: not installed, or the network cannot be exported.
    """
    network = network.eval().to(device="cpu", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        export_onnx(network, file)
        return load_onnx(file, torch.get_num_threads())
