"""The parameters of `lasr upscale`. Imports no PyTorch, so that `--help` answers at once."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from lasr.device import Device
from lasr.flags import Sections
from lasr.pictures.samples import LARGEST, MAX_PIXELS
from lasr.pictures.write import Format

EngineName = Literal["auto", "torch", "compile", "onnx"]
Precision = Literal["auto", "float32", "float16"]

# With the weights of Real-ESRGAN, cutting a picture changes the output near the cut by at most
# 3/255 at an overlap of 48 pixels, by 13/255 at 32, and by 76/255 at 4 (on fur).
TILE, OVERLAP = 512, 48
GPU_TILE = 1024  # the surroundings of small tiles cost more than the memory of large ones
SMALLEST_TILE = 16


class UpscaleConfig(BaseModel):
    """The flags of `lasr upscale`."""

    # What `--help-all` shows; `--help` shows the other fields.
    SECTIONS: ClassVar[Sections] = {
        "Execution": ("tile", "overlap", "engine", "precision", "max_pixels"),
    }

    inputs: list[str] = Field(
        min_length=1, description="pictures, folders (searched recursively), globs, .txt lists"
    )
    weights: str = Field(description="a run's model.safetensors, any SR network's file, or a name")
    out: Path = Field(description="folder for the results; subfolders of the inputs are kept")
    passes: int = Field(1, ge=1, le=3, description="2 upscales twice: x16 (appendix E.2)")
    format: Format = Field("png", description="of the results; jpg and webp are 8 bit")
    tile: int | None = Field(
        None,
        ge=SMALLEST_TILE,
        description=f"largest side of the tiles, in input pixels; bounds memory (default: {TILE},"
        f" on a GPU {GPU_TILE})",
    )
    overlap: int = Field(OVERLAP, ge=0, description="pixels around a tile that the network sees")
    engine: EngineName = Field("auto", description="what runs the network, see docs/upscale.md")
    precision: Precision = Field("auto", description="auto: float16 on a GPU, otherwise float32")
    strip: bool = Field(
        False, description="leave out EXIF, XMP and resolution, which results inherit otherwise"
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=LARGEST,
        description="pictures with more pixels are refused; bounds memory",
    )
    device: Device = Field("auto", description="where the network runs")
    overwrite: bool = Field(False, description="replace results that exist already")
