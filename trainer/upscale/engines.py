"""What runs a network when nothing is trained: PyTorch, PyTorch compiled, or ONNX Runtime."""

import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lasr.errors import UserError
from schemas.manifest import SCALE
from trainer.models.rrdb import REACH, RRDB

EngineName = Literal["auto", "torch", "compile", "onnx"]
Precision = Literal["auto", "float32", "float16"]
# Pictures (1, 3, h, w) float32 on the CPU to (1, 3, s h, s w) float32 on the CPU, not clamped.
Engine = Callable[[Tensor], Tensor]

_STRIP = 64  # rows of features


def make_engine(
    network: nn.Module,
    device: torch.device,
    name: EngineName = "auto",
    precision: Precision = "auto",
    half: bool = True,
) -> Engine:
    """The engine `name` around `network`, which moves to `device` and to channels_last.

    `auto` is `torch`: it starts at once, and nothing was measured to be faster (see
    benchmarks/upscale.py). half: whether the network bears float16, which precision `auto` then
    means on a GPU.

    Raises UserError: an engine that is not installed, or a combination that does not exist.
    """
    if precision == "float16" and device.type == "cpu":
        raise UserError("--precision float16 needs a GPU; a CPU is slower with it")
    if name == "onnx":
        if device.type != "cpu":
            raise UserError("--engine onnx runs on the CPU; add --device cpu, or take another")
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
    """PyTorch as it is; channels_last suits oneDNN on a CPU and tensor cores on a GPU."""
    network = network.eval().to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
    forward = compiled(partial(_in_strips, network) if isinstance(network, RRDB) else network)

    def run(picture: Tensor) -> Tensor:
        moved = picture.to(device, dtype).contiguous(memory_format=torch.channels_last)
        return forward(moved).float().cpu()

    return run


def _in_strips(network: RRDB, x: Tensor) -> Tensor:
    """The same answer with a fifth of the memory: after the features there are 16 times the pixels,
    and a pixel depends on few of them."""
    features = network.extract(x)
    height, strips = x.shape[2], []
    for top in range(0, height, _STRIP):
        first, bottom = max(top - REACH, 0), min(top + _STRIP, height)
        enlarged = network.reconstruct(features[:, :, first : bottom + REACH])
        strips.append(enlarged[:, :, SCALE * (top - first) : SCALE * (bottom - first)])
    return torch.cat(strips, dim=2)


def compiled_engine(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Engine:
    """PyTorch's inductor; needs a C++ compiler (CPU) or Triton (GPU) and a minute to start."""
    mode = "reduce-overhead" if device.type == "cuda" else "default"  # the former: CUDA graphs
    run = torch_engine(network, device, dtype, partial(torch.compile, mode=mode))

    def checked(picture: Tensor) -> Tensor:
        try:
            return run(picture)
        except Exception as error:
            if isinstance(error, torch._dynamo.exc.TorchDynamoException):
                line = str(error).strip().splitlines()[0]
                raise UserError(f"--engine compile: {line}; take --engine torch") from error
            raise

    return checked


def onnx_engine(network: nn.Module) -> Engine:
    """ONNX Runtime on the CPU. Raises UserError: not installed, or a network without an export."""
    if lacking := _lacking():
        raise UserError(f"--engine onnx: {lacking} is not installed; `pip install 'la-sr[fast]'`")
    import onnxruntime

    sample = torch.rand(1, 3, 64, 64)
    side = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    network = network.eval().to(device="cpu", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        try:
            with torch.no_grad():
                program = torch.onnx.export(
                    network, (sample,), dynamo=True, dynamic_shapes=(side,), verbose=False
                )
            assert program is not None
            program.save(file)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the exporter, onnx and the runtime raise their own
            line = str(error).strip().splitlines()[0]
            raise UserError(f"--engine onnx: no export ({line}); take --engine torch") from error
    name = session.get_inputs()[0].name
    return lambda picture: torch.from_numpy(session.run(None, {name: picture.numpy()})[0])


def _lacking() -> str:
    wanted = ("onnx", "onnxruntime", "onnxscript")
    return ", ".join(name for name in wanted if importlib.util.find_spec(name) is None)
