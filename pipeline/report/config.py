"""The parameters of `lasr report`, and the colours of the roles."""

from pathlib import Path

from pydantic import BaseModel, Field

from lasr.device import Device
from pipeline.query.limits import MEMORY_LIMIT, Memory

COLOURS: dict[str, str] = {"lr": "#ffb000", "hr": "#2f6fff"}  # the paper's yellow and blue


class ReportConfig(BaseModel):
    """The parameters of `lasr report`."""

    manifest: Path = Field(Path("data/patches.parquet"), description="the manifest to show")
    out: Path = Field(Path("data/report.html"), description="the page to write")
    images: list[str] | None = Field(
        None,
        min_length=1,
        description="where the photographs are (default: where the build found them)",
    )
    photographs: int = Field(12, ge=0, description="number of photographs in the gallery")
    pairs: int = Field(24, ge=0, description="number of pairs of a far and a near patch")
    max_mb: float = Field(
        8.0, gt=0, description="maximum size of the page; its pictures become smaller until it fits"
    )
    seed: int = Field(0, ge=0, description="seed of the random samples")
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="give up where the manifest was not read after this many seconds",
    )
    memory_limit: Memory | None = Field(None, description=MEMORY_LIMIT)
    device: Device = Field(
        "auto", description="where the depth estimator runs, if the build cached no distance maps"
    )
