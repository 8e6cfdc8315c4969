"""The parameters of a build: one model behind flags, Prefect's form and the metadata."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.device import Device
from schemas.manifest import PATCH_SIZE, Role
from schemas.weights import PROFILES, Profile

Strategy = Literal["depth", "random", "overlap", "inclusion"]
DICTIONARY = Path(__file__).with_name("dictionary.txt")

# What changes no row: where things stand, how the work is cut, how it runs.
_NOT_IN_ROWS = {"images", "out", "shard_size", "limit", "dry_run", "device", "workers", "profile"}


class BuildConfig(BaseModel):
    """What `pipeline.run` and the deployment `build-patches` take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: list[str] = Field(
        min_length=1,
        description="photographs: folders (searched downwards), files, globs, .txt lists of paths",
    )
    out: Path = Field(Path("data/patches.parquet"), description="the manifest to write")
    profile: Profile = Field(
        "default", description="a named set of models; offline needs no downloads and is untrained"
    )
    depth: str | None = Field(
        None, description="depth estimator: a name or a folder (default: the profile's)"
    )
    clip: str | None = Field(
        None, description="CLIP for captions: a name or a folder (default: the profile's)"
    )
    dictionary: Path | None = Field(
        None, description="your own list of caption words, one a line (default: the built-in 1,000)"
    )
    k: int = Field(8, ge=1, description="patches per role and photograph")
    min_separation: int | None = Field(
        None,
        ge=0,
        description="pixels between centres of one role; 0 = the paper's literal top-k"
        " (default: half the patch's side)",
    )
    strategy: Strategy = Field("depth", description="how patches are chosen (table 3)")
    min_texture: float = Field(
        0.0, ge=0, description="leave out patches with less texture: background filter (table 4)"
    )
    seed: int = Field(0, ge=0, description="for the random strategies and DepthFM's noise")
    shard_size: int = Field(256, ge=1, description="photographs per part")
    workers: int = Field(
        os.cpu_count() or 1, ge=1, description="threads that decode photographs and write PNGs"
    )
    device: Device = Field("auto", description="where the networks run")
    limit: int | None = Field(None, ge=1, description="use only the first N photographs")
    dry_run: bool = Field(False, description="say what would be done and what it needs, then stop")

    @property
    def depth_name(self) -> str:
        """Name or path of the depth estimator."""
        return self.depth or PROFILES[self.profile]["depth"]

    @property
    def clip_name(self) -> str:
        """Name or path of the CLIP."""
        return self.clip or PROFILES[self.profile]["clip"]

    def separation(self, role: Role) -> int:
        """Smallest distance between two centres of one role, in pixels."""
        half = PATCH_SIZE[role] // 2
        return half if self.min_separation is None else self.min_separation

    def row_parameters(self) -> dict[str, object]:
        """The parameters that determine a manifest's rows, as plain values."""
        return self.model_dump(mode="json", exclude=_NOT_IN_ROWS) | {
            "depth": self.depth_name,
            "clip": self.clip_name,
        }
