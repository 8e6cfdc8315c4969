"""Write a trained network for other programs, and check the file by running it.

    lasr export --weights data/runs/patches --out mine-x4.onnx
    lasr export --weights data/runs/patches --out mine-x4.param --half

The suffix of --out is the format:
  .onnx          ONNX Runtime, TensorRT, OpenVINO, chaiNNer; any height, width and batch
  .param         NCNN, a pair with .bin beside it: Upscayl's custom models, realesrgan-ncnn-vulkan
  .pth           Real-ESRGAN's scripts, chaiNNer
  .safetensors   chaiNNer, spandrel, this project

An .onnx or .param file is run before it gets its name; its output must be that of PyTorch.
"""

import re
import sys
from pathlib import Path

from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.errors import UserError
from lasr.ownership import check_binary, check_file
from lasr.terminal.output import say
from lasr.weights.locate import TABLE, Located, locate
from schemas.manifest import SCALE

FORMATS = (".onnx", ".param", ".pth", ".safetensors")


class ExportConfig(BaseModel):
    """The flags of `lasr export`."""

    weights: str = Field(
        description="a run's folder, a weights file, or a name that `lasr weights list` prints"
    )
    out: Path = Field(description=f"the file to write; its suffix is one of {', '.join(FORMATS)}")
    half: bool = Field(
        False,
        description="weights in float16, half the size; pictures stay float32 (not for .pth)",
    )
    opset: int = Field(18, ge=18, description="ONNX opset")
    licence: str | None = Field(
        None,
        description="terms to write into the file (default: those of the starting weights)",
    )


def export(config: ExportConfig) -> list[Path]:
    """Write the file (for NCNN two files), checked; returns the paths. Raises UserError."""
    check_out(config.out, config.half)
    check_file(config.out, [config.weights])
    if config.out.suffix == ".param":
        check_binary(config.out)
    located, metadata = describe(config.weights, config.licence)
    from trainer.models.export import export_network  # loads PyTorch, after the flags are checked
    from trainer.models.load import load_sr

    network = load_sr(located).eval()
    return export_network(network, config.out, config.half, config.opset, metadata)


def check_out(out: Path, half: bool) -> None:
    """Raise UserError if no file with this name and precision can be written."""
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: unknown format", f"end it in one of {', '.join(FORMATS)}")
    if half and out.suffix == ".pth":
        raise UserError("--half: .pth files keep float32", "use it for the other formats")
    # Upscayl takes the scale from x2, 3x, … anywhere in a model's name.
    if out.suffix == ".param" and (odd := re.search(r"[123]x|x[123]", out.stem.lower())):
        raise UserError(
            f"--out {out}: Upscayl would read '{odd[0]}' in this name as the scale",
            "use a name such as mine-x4.param",
        )


def describe(weights: str, licence: str | None) -> tuple[Located, dict[str, str]]:
    """Locate `weights` (a run's folder, a file or a name) and describe them, for the file's header.

    Raises UserError: a run without final weights yet, or weights that are not on this machine.
    """
    name, start = weights, ""
    if Path(weights).is_dir():
        from trainer import checkpoint  # loads PyTorch

        start = checkpoint.read_start(Path(weights))
        name = str(Path(weights) / "model.safetensors")
        if not Path(name).is_file():
            raise UserError(f"{name}: not written yet", "wait until the run ends")
    located = locate(name, "sr")
    known = TABLE.get((start or located.identity).split("@")[0])
    metadata = {"scale": str(SCALE), "colour": "RGB", "range": "0..1", "source": located.identity}
    metadata |= {"started_from": start} if start else {}
    return located, metadata | {"licence": licence or (known.licence if known else "not stated")}


def run(config: ExportConfig) -> None:
    """Export, and print what was written."""
    for path in export(config):
        say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def following(config: ExportConfig) -> list[object]:
    """The next command: upscaling with the same network here, to compare with the other program."""
    weights: object = config.weights
    if Path(config.weights).is_dir():
        weights = Path(config.weights) / "model.safetensors"
    return ["lasr", "upscale", "--weights", weights, "PICTURE", "--out", "data/upscaled"]


main = Command(
    ExportConfig, run, name="lasr export", about=__doc__, weights=True, following=following
)

if __name__ == "__main__":
    sys.exit(main())
