"""The parameters of a build: one model behind flags, Prefect's form and the metadata.

Each stage declares its own parameters in `pipeline/stages`; here they become one model.
"""

import os
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lasr.device import Device, Precision
from lasr.flags import Sections
from lasr.pictures.samples import LARGEST
from lasr.weights.locate import PROFILES, Profile
from pipeline.stages.captions import CaptionConfig
from pipeline.stages.depth import DepthConfig
from pipeline.stages.images import MAX_PIXELS, ImagesConfig
from pipeline.stages.select import SelectConfig
from pipeline.storage import StoragePath
from schemas.catalogue import work_name
from schemas.manifest import Role

Address = Annotated[str, BeforeValidator(os.fspath)]  # a path, or s3://bucket/name
Runner = Literal["local", "ray"]
# Far patches of the formula are at the top of a picture: mostly sky; near ones at its bottom: often
# out of focus (docs/results.md). The others are literal.
FAR_TEXTURE: dict[Profile, float] = {"offline": 0.03, "default": 0.0, "paper": 0.0, "test": 0.01}
MIN_TEXTURE: dict[Profile, float] = {"offline": 0.01, "default": 0.0, "paper": 0.0, "test": 0.0}
CACHE_FOLDER = "kept"  # in the work folder; its name on disk since the first builds


def work_folder(manifest: StoragePath) -> StoragePath:
    """The folder of finished parts, beside a manifest."""
    return manifest.parent / work_name(manifest.name)


class OutputConfig(BaseModel):
    """Where a build writes, and its profile."""

    model_config = ConfigDict(frozen=True)

    out: Address = Field(
        "data/patches.parquet", description="the manifest to write: a path, or s3://bucket/name"
    )
    profile: Profile = Field(
        "default",
        description="a named set of models; offline: small ones out of packages, for a first look",
    )


# pydantic lists the fields of the last base first: flags and form begin with `images`.
class BuildConfig(SelectConfig, CaptionConfig, DepthConfig, OutputConfig, ImagesConfig):
    """What `pipeline.run` and the deployment `build-patches` take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # What `--help-all` shows; `--help` shows the other fields.
    SECTIONS: ClassVar[Sections] = {
        "Models": ("depth", "clip", "dictionary"),
        "Choice of patches": ("min_separation", "min_texture", "far_texture"),
        "Execution": (
            "precision", "shard_size", "workers", "cache", "max_pixels", "verify",
            "keep_unreachable", "runner", "ray_address", "gpus_per_task",
        ),
    }  # fmt: skip

    shard_size: int = Field(256, ge=1, description="photographs per part")
    workers: int = Field(
        os.cpu_count() or 1,
        ge=1,
        description="threads that decode photographs and write PNGs; the CPUs Ray reserves for a"
        " part",
    )
    cache: Address | None = Field(
        None,
        description="folder of distance maps and CLIP features that builds may share (default: the"
        " build's own, where what the manifest no longer needs is removed)",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=LARGEST,
        description="photographs with more pixels are left out; bounds memory",
    )
    device: Device = Field("auto", description="where the networks run")
    precision: Precision = Field(
        "auto",
        description="of depth estimator and CLIP (auto: bfloat16 on a GPU, float16 on one without"
        " it, float32 on a CPU)",
    )
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
    verify: bool = Field(
        False,
        description="hash every photograph and check every part before anything is reused",
    )
    keep_unreachable: bool = Field(
        False,
        description="keep the earlier rows of photographs in folders that cannot be listed or have"
        " vanished, instead of stopping",
    )
    limit: int | None = Field(None, ge=1, description="use only the first N photographs")
    dry_run: bool = Field(False, description="say what would be done and what it needs, then stop")

    def least_texture(self, role: Role) -> float:
        """The smallest texture that a patch of this role may have."""
        both = MIN_TEXTURE[self.profile] if self.min_texture is None else self.min_texture
        far = FAR_TEXTURE[self.profile] if self.far_texture is None else self.far_texture
        return max(both, far) if role == "lr" else both

    def may_lower(self, role: Role) -> bool:
        """Whether that is the profile's; what the user gave holds for every photograph."""
        return self.min_texture is None and (role == "hr" or self.far_texture is None)

    @property
    def depth_name(self) -> str:
        """Name or path of the depth estimator."""
        return self.depth or PROFILES[self.profile]["depth"]

    @property
    def clip_name(self) -> str:
        """Name or path of the CLIP."""
        return self.clip or PROFILES[self.profile]["clip"]

    @property
    def work(self) -> StoragePath:
        """The folder of finished parts, beside the manifest."""
        return work_folder(StoragePath(self.out))

    @property
    def cache_folder(self) -> StoragePath:
        """The cache of distance maps and features."""
        return self.work / CACHE_FOLDER if self.cache is None else StoragePath(self.cache)
