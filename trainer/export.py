"""Write a trained network for other programs, and check the file by running it.

    python -m trainer.export --weights data/runs/patches --out mine-x4.onnx
    python -m trainer.export --weights data/runs/patches --out mine-x4.param --half

The suffix of --out says what is written:
  .onnx          ONNX Runtime, TensorRT, OpenVINO, chaiNNer; any height, width and batch
  .param         NCNN, a pair with .bin beside it: Upscayl's custom models, realesrgan-ncnn-vulkan
  .pth           Real-ESRGAN's scripts, chaiNNer
  .safetensors   chaiNNer, spandrel, this project

An .onnx or .param file is run before it gets its name, and must answer as PyTorch does.
"""

import copy
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from lasr.cli import Command
from lasr.errors import UserError, require
from lasr.files import atomic_path
from lasr.weights.locate import TABLE, locate
from schemas.manifest import SCALE
from trainer import checkpoint
from trainer.models.load import load_sr
from trainer.models.ncnn_export import write_ncnn
from trainer.models.rrdb import RRDB
from trainer.models.save import write_tensors

FORMATS = (".onnx", ".param", ".pth", ".safetensors")
SHAPES = ((1, 3, 64, 64), (1, 3, 33, 50), (2, 3, 48, 27))  # sizes at which a file is compared
BOUND = 1e-4  # largest difference from PyTorch, of values in 0..1; 1/255 is a grey level
BOUND_HALF = 2 / 255

Run = Callable[[Tensor], Tensor]  # (n, 3, h, w) to (n, 3, 4h, 4w), float32


class ExportConfig(BaseModel):
    """What `trainer.export` takes."""

    weights: str = Field(
        description="a run's folder, a weights file, or a name of lasr.weights.locate"
    )
    out: Path = Field(description=f"the file to write; its suffix is one of {', '.join(FORMATS)}")
    half: bool = Field(
        False,
        description="weights in float16, half the size; pictures stay float32 (.onnx, .param)",
    )
    opset: int = Field(18, ge=18, description="ONNX opset")
    licence: str | None = Field(
        None,
        description="terms to write into the file (default: of its starting weights, where known)",
    )


def export(config: ExportConfig) -> list[Path]:
    """Write the file (for NCNN the two files), checked; returns their paths. Raises UserError."""
    kind = config.out.suffix
    if kind not in FORMATS:
        raise UserError(f"--out {config.out}: the suffix must be one of {', '.join(FORMATS)}")
    if config.half and kind in (".pth", ".safetensors"):
        raise UserError(f"--half: {kind} files keep float32; it is for .onnx and .param")
    if kind == ".param":
        _check_name(config.out)
    name, about = describe(config.weights, config.licence)
    network = load_sr(locate(name, "sr")).eval()
    if kind == ".onnx":
        _export_onnx(network, config, about)
    elif kind == ".param":
        return _export_ncnn(network, config)
    else:
        write_tensors(config.out, network.state_dict(), about)
    return [config.out]


def describe(weights: str, licence: str | None) -> tuple[str, dict[str, str]]:
    """What load_sr takes for `weights` (a run's folder, a file or a name), and what is said of it.

    Raises UserError: a run that has no final weights yet, weights that are not here.
    """
    name, start = weights, ""
    if Path(weights).is_dir():
        start = checkpoint.read_config(Path(weights))[1]["sr_init"]
        name = str(Path(weights) / "model.safetensors")
        if not Path(name).is_file():
            raise UserError(f"{name}: not there yet, it is written when the run ends; let it end")
    source = locate(name, "sr").identity
    known = TABLE.get((start or source).split("@")[0])
    about = {"scale": str(SCALE), "colour": "RGB", "range": "0..1", "source": source}
    about |= {"started_from": start} if start else {}
    return name, about | {"licence": licence or (known.licence if known else "not stated")}


def compare(network: nn.Module, run: Run, bound: float) -> None:
    """Print the largest difference at several sizes. Raises UserError where one exceeds `bound`."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        pictures = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            difference = float((run(pictures) - network(pictures)).abs().max())
        size = f"{shape[0]} x {shape[3]}x{shape[2]}"
        print(f"compared with PyTorch, {size}: largest difference {difference:.1e}")
        if not difference <= bound:  # also where it is not a number
            raise UserError(
                f"the exported network differs from PyTorch's by {difference:.1e} at {size}, more"
                f" than {bound:.1e}; nothing was written"
            )


class _Half(nn.Module):
    """A network that computes in float16 between float32 pictures."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, pictures: Tensor) -> Tensor:
        enlarged: Tensor = self.network(pictures.half())
        return enlarged.float()


def _export_onnx(network: nn.Module, config: ExportConfig, about: dict[str, str]) -> None:
    require("onnxscript", "export")  # what torch's exporter stands on
    runtime = require("onnxruntime", "export")
    module = _Half(network) if config.half else network
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.onnx.export(
                module,
                (torch.rand(2, 3, 24, 32),),
                input_names=["lr"],
                output_names=["sr"],
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
                opset_version=config.opset,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{config.weights}: PyTorch cannot write a {type(network).__name__} as ONNX ({reason})"
        ) from error
    assert program is not None
    if program.model.opset_imports[""] != config.opset:  # where it knows no such, it says nothing
        raise UserError(f"--opset {config.opset}: PyTorch cannot write it; take 18")
    program.model.metadata_props.update(about)
    for node in program.model.graph:
        node.metadata_props.clear()  # the exporter leaves this machine's paths there
    with atomic_path(config.out) as temporary:
        program.save(temporary)
        session = runtime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        compare(
            network,
            lambda pictures: torch.from_numpy(session.run(None, {"lr": pictures.numpy()})[0]),
            BOUND_HALF if config.half else BOUND,
        )


def _export_ncnn(network: nn.Module, config: ExportConfig) -> list[Path]:
    if not isinstance(network, RRDB):
        raise UserError(
            f"--out {config.out}: NCNN files are written for RRDB only, this is a"
            f" {type(network).__name__}; write a .pth and convert it with chaiNNer or pnnx"
        )
    ncnn = require("ncnn", "export")
    files = [config.out, config.out.with_suffix(".bin")]
    with atomic_path(files[0]) as param, atomic_path(files[1]) as binary:
        write_ncnn(network, param, binary, config.half)
        loaded = ncnn.Net()
        if loaded.load_param(str(param)) or loaded.load_model(str(binary)):
            raise UserError(f"{files[0]}: NCNN does not load it; nothing was written")

        def run(pictures: Tensor) -> Tensor:
            return torch.stack([_run_ncnn(ncnn, loaded, picture.numpy()) for picture in pictures])

        compare(network, run, BOUND_HALF if config.half else BOUND)
    return files


def _run_ncnn(ncnn: Any, network: Any, picture: np.ndarray) -> Tensor:
    with network.create_extractor() as extractor:
        extractor.input("data", ncnn.Mat(picture))  # borrows the array's memory
        _, enlarged = extractor.extract("output")
        return torch.from_numpy(np.array(enlarged))


def _check_name(out: Path) -> None:
    """Upscayl takes the scale from a model's name, wherever in it x2, 3x … stand."""
    if odd := re.search(r"[123]x|x[123]", out.stem.lower()):
        raise UserError(
            f"--out {out}: Upscayl would read '{odd[0]}' in this name as the scale; call it"
            " for example mine-x4.param"
        )


def run(config: ExportConfig) -> None:
    """Export and say what was written."""
    for path in export(config):
        print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


main = Command(ExportConfig, run, name="lasr export", about=__doc__, weights=True)

if __name__ == "__main__":
    sys.exit(main())
