"""The parameters of `lasr ui`."""

import ipaddress
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field

from lasr.device import Device
from lasr.flags import Sections
from lasr.pictures.samples import LARGEST
from pipeline.query.limits import MEMORY_LIMIT, Memory

MANIFEST = Path("data/patches.parquet")
MAX_PIXELS = 2**24  # 16.8 megapixels: x4 takes 0.8 GB in memory while the page's preview is made
TOKEN = "LASR_UI_TOKEN"


class UiConfig(BaseModel):
    """The flags of `lasr ui`."""

    # What `--help-all` shows; `--help` shows the other fields.
    SECTIONS: ClassVar[Sections] = {
        "Limits": ("timeout", "memory_limit", "max_pixels", "tile"),
    }

    manifest: Path | None = Field(
        None, description=f"the manifest to ask (default: {MANIFEST} if there is one)"
    )
    weights: list[str] | None = Field(
        None, min_length=1, description="more weights to choose from: names or files"
    )
    runs: Path = Field(
        Path("data/runs"), description="folder of training runs, whose networks can be chosen"
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 is every one"
    )
    port: int = Field(7860, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    token: bool = Field(
        False,
        description=f"ask for a token, as always where other machines can reach the page; ${TOKEN}"
        " chooses it, otherwise it is random",
    )
    device: Device = Field("auto", description="where networks run")
    timeout: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="seconds that a question in SQL may take"
    )
    memory_limit: Memory | None = Field(None, description=MEMORY_LIMIT)
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=LARGEST,
        description="pictures with more pixels are refused; bounds memory",
    )
    tile: int | None = Field(
        None, ge=16, description="largest side of the tiles, as for `lasr upscale`"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
