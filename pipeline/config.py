"""The parameters of a build: one model behind flags, Prefect's form and the metadata."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lasr.device import Device
from lasr.weights.locate import PROFILES, Profile
from pipeline.storage import StoragePath
from schemas.manifest import PATCH_SIZE, Role

Strategy = Literal["depth", "random", "overlap", "inclusion"]
DICTIONARY = Path(__file__).with_name("stages") / "dictionary.txt"

Address = Annotated[str, BeforeValidator(os.fspath)]  # a path, or s3://bucket/name
Runner = Literal["local", "ray"]


def work_folder(manifest: StoragePath) -> StoragePath:
    """The folder of finished parts, beside a manifest."""
    return manifest.parent / f"{manifest.name.removesuffix('.parquet')}.work"


class BuildConfig(BaseModel):
    """What `pipeline.run` and the deployment `build-patches` take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: list[str] = Field(
        min_length=1,
        description="photographs: folders (searched downwards), files, globs, .txt lists of paths",
    )
    out: Address = Field(
        "data/patches.parquet", description="the manifest to write: a path, or s3://bucket/name"
    )
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
        os.cpu_count() or 1,
        ge=1,
        description="threads that decode photographs and write PNGs; the CPUs Ray reserves for a"
        " part",
    )
    kept: Address | None = Field(
        None,
        description="folder of distance maps and CLIP features that builds may share (default: the"
        " build's own, where what the manifest no longer needs is removed)",
    )
    device: Device = Field("auto", description="where the networks run")
    runner: Runner = Field(
        "local", description="local: one part after the other, here; ray: many at once on a cluster"
    )
    ray_address: str | None = Field(
        None,
        description="Ray cluster: host:port, ray://host:10001 or auto (default: one of this"
        " machine's own, for the time of the build)",
    )
    gpus_per_task: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs that Ray reserves for a part: 0.5 = two parts share one (default: 1 where"
        " the cluster has GPUs)",
    )
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

    @property
    def work(self) -> StoragePath:
        """The folder of finished parts, beside the manifest."""
        return work_folder(StoragePath(self.out))

    @property
    def kept_folder(self) -> StoragePath:
        """The folder of kept distance maps and features."""
        return StoragePath(self.kept) if self.kept else self.work / "kept"
