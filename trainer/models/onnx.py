"""Export networks to ONNX and run the files with ONNX Runtime. Extra: `fast`."""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lasr.errors import UserError, one_line, require

OPSET = 18
_INPUT, _OUTPUT = "lr", "sr"


def export_onnx(
    network: nn.Module,
    path: Path,
    opset: int = OPSET,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network as an ONNX file (not atomically).

    Input `lr`: (n, 3, h, w) float32 in [0, 1]. Output `sr`: (n, 3, s h, s w) float32, not clamped.
    Batch, height and width are dynamic.

    Args:
        network: on the CPU, in eval mode.
        half: compute in float16, with weights in float16.
        metadata: goes into the file.

    Raises UserError: onnxscript is not installed, PyTorch cannot export the network, or it cannot
    write this opset.
    """
    require("onnxscript", "fast")  # PyTorch's exporter needs it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.onnx.export(
                _Half(network) if half else network,
                (torch.rand(2, 3, 24, 32),),
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"PyTorch cannot write a {type(network).__name__} as ONNX ({reason})",
            "use --engine torch to upscale, or export to another format",
        ) from error
    assert program is not None
    if program.model.opset_imports[""] != opset:  # the exporter silently takes another one
        raise UserError(f"--opset {opset}: PyTorch cannot write it", f"use {OPSET}")
    program.model.metadata_props.update(metadata or {})
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter stores local paths there
    program.save(path)


def load_onnx(path: Path, threads: int | None = None) -> Callable[[Tensor], Tensor]:
    """Load an exported file into ONNX Runtime on the CPU; returns a function as `export_onnx` says.

    Raises UserError: onnxruntime is not installed, or it refuses the file.
    """
    runtime = require("onnxruntime", "fast")
    options = runtime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has its own exceptions
        raise UserError(
            f"ONNX Runtime does not load the exported network ({one_line(error)})",
            "update onnxruntime, or use --engine torch",
        ) from error
    return lambda pictures: torch.from_numpy(session.run(None, {_INPUT: pictures.numpy()})[0])


class _Half(nn.Module):
    """Computes in float16; pictures stay float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, pictures: Tensor) -> Tensor:
        upscaled: Tensor = self.network(pictures.half())
        return upscaled.float()
