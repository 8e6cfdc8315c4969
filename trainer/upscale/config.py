"""The parameters of `lasr upscale`. Imports no PyTorch, so that `--help` answers at once."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from lasr.device import Device
from lasr.flags import Sections
from lasr.pictures.samples import LARGEST, MAX_PIXELS
from lasr.pictures.write import Format

EngineName = Literal["auto", "torch", "compile", "onnx"]
Precision = Literal["auto", "float32", "float16"]
Alpha = Literal["network", "lanczos"]

# With the weights of Real-ESRGAN, cutting a picture changes the output near the cut by at most
# 3/255 at an overlap of 48 pixels, by 13/255 at 32, and by 76/255 at 4 (on fur).
TILE, OVERLAP = 512, 48
GPU_TILE = 1024  # the surroundings of small tiles cost more than the memory of large ones
SMALLEST_TILE = 16
MAX_PASSES = 3


def _check_size(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}", text):
        raise ValueError("write WIDTHxHEIGHT in pixels, such as 3840x2160")
    return text


def _check_suffix(text: str) -> str:
    if "/" in text or not text.isprintable():
        raise ValueError("a suffix is part of a name, such as _x4")
    return text


class UpscaleConfig(BaseModel):
    """The flags of `lasr upscale`."""

    # What `--help-all` shows; `--help` shows the other fields.
    SECTIONS: ClassVar[Sections] = {
        "Pictures": ("alpha", "colour_fix", "wrap", "strip"),
        "Execution": ("tile", "overlap", "engine", "precision", "max_pixels"),
    }
    ALIASES: ClassVar[Mapping[str, str]] = {"inputs": "-i", "out": "-o"}

    inputs: list[str] = Field(
        min_length=1, description="pictures, folders (searched recursively), globs, .txt lists"
    )
    weights: str = Field(description="a run's model.safetensors, any SR network's file, or a name")
    out: Path = Field(description="folder for the results; subfolders of the inputs are kept")
    scale: float | None = Field(
        None, gt=0, le=64, description="of the results' sides, such as 2.5 (default: the network's)"
    )
    size: Annotated[str, AfterValidator(_check_size)] | None = Field(
        None,
        description="WIDTHxHEIGHT, such as 3840x2160, that results fit inside; they keep their"
        " aspect ratio",
    )
    passes: int | None = Field(
        None,
        ge=1,
        le=MAX_PASSES,
        description="2 upscales twice: x16 (appendix E.2; default: as many as --scale or --size"
        " needs)",
    )
    format: Format = Field("png", description="of the results; jpg and webp are 8 bit")
    suffix: Annotated[str, AfterValidator(_check_suffix)] | None = Field(
        None, max_length=100, description="put behind the names of results, such as _x4"
    )
    alpha: Alpha = Field("network", description="what enlarges transparency")
    colour_fix: bool = Field(
        False, description="put back the low frequencies of the input, where a network shifts them"
    )
    wrap: bool = Field(
        False, description="for seamless textures: beyond a border, the opposite one goes on"
    )
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
    dry_run: bool = Field(
        False, description="say what would be done, how long it takes and what memory, then stop"
    )

    @model_validator(mode="after")
    def _check(self) -> "UpscaleConfig":
        if self.scale is not None and self.size is not None:
            raise ValueError("--scale and --size are two answers to one question: give one of them")
        return self

    @property
    def box(self) -> tuple[int, int] | None:
        """Width and height of --size."""
        width, _, height = (self.size or "").partition("x")
        return (int(width), int(height)) if self.size else None
