"""Write a network as a file for other programs, and check the file by running it."""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import lasr
from lasr.errors import UserError, one_line, require
from lasr.files import atomic_path
from lasr.marks import KEY
from lasr.ownership import check_binary, own_path
from trainer.models.ncnn import load_runtime, write_ncnn
from trainer.models.rrdb import RRDB
from trainer.models.save import write_tensors

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
    program.model.metadata_props.update({**(metadata or {}), KEY: lasr.__version__})
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


SHAPES = ((1, 3, 64, 64), (1, 3, 33, 50), (2, 3, 48, 27))  # of the pictures that are compared
BOUND = 1e-4  # largest difference from PyTorch, of values in 0..1; 1/255 is a grey level
BOUND_HALF = 2 / 255


def export_network(
    network: nn.Module, out: Path, half: bool, opset: int, metadata: Mapping[str, str]
) -> list[Path]:
    """Write `out` atomically in the format of its suffix; returns the paths of the files.

    `.onnx` and `.param` (NCNN, with `.bin` beside it) are run and compared with PyTorch before they
    get their names; so are weights that are rounded to float16. Otherwise `.pth` and `.safetensors`
    hold the tensors as they are.

    Args:
        network: x4, on the CPU, in eval mode.
        half: weights in float16 (all but `.pth`).
        opset: of ONNX.
        metadata: goes into `.onnx` and `.safetensors`; the other formats have no field for it.

    Raises UserError: the format does not hold this network, a package is missing, or the file's
    output differs from PyTorch's.
    """
    bound = BOUND_HALF if half else BOUND
    if out.suffix == ".onnx":
        with own_path(out) as temporary:
            export_onnx(network, temporary, opset, half, metadata)
            compare(network, load_onnx(temporary), bound)
    elif out.suffix == ".param":
        if not isinstance(network, RRDB):
            raise UserError(
                f"--out {out}: NCNN files are written for RRDB only, this is a"
                f" {type(network).__name__}",
                "write a .pth and convert it with chaiNNer or pnnx",
            )
        binary_path = out.with_suffix(".bin")
        # The `.param` gets its name first, while there is no `.bin`: a kill leaves no unlike pair.
        with atomic_path(binary_path, lambda path: False) as binary, own_path(out) as param:
            write_ncnn(network, param, binary, half)
            compare(network, load_runtime(param, binary), bound)
            check_binary(out)
            binary_path.unlink(missing_ok=True)
        return [out, binary_path]
    else:
        if half:
            rounded = copy.deepcopy(network).half()
            compare(network, copy.deepcopy(rounded).float(), bound)
            network = rounded
        write_tensors(out, network.state_dict(), dict(metadata))
    return [out]


def compare(network: nn.Module, run: Callable[[Tensor], Tensor], bound: float) -> None:
    """Print the largest difference at several sizes.

    run: (n, 3, h, w) to (n, 3, 4h, 4w), float32. Raises UserError: a difference exceeds `bound`.
    """
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        pictures = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            difference = float((run(pictures) - network(pictures)).abs().max())
        size = f"{shape[0]} x {shape[3]}x{shape[2]}"
        print(f"compared with PyTorch, {size}: largest difference {difference:.1e}")
        if not difference <= bound:  # NaN fails, too
            raise UserError(
                f"the output of the exported network differs from PyTorch's by {difference:.1e} at"
                f" {size}, more than {bound:.1e}",
                "nothing was written; use another format, or run `lasr doctor`",
            )
