"""The parameters that `lasr depth`, `lasr caption` and `lasr patches` share."""

from pydantic import BaseModel, ConfigDict, Field

from lasr.device import Device, Precision
from lasr.pictures.samples import LARGEST
from lasr.weights.locate import Profile
from pipeline.config import BuildConfig
from pipeline.stages.images import MAX_PIXELS


class StepConfig(BaseModel):
    """Which pictures, and where the networks run; the models of a stage are in its own config."""

    model_config = ConfigDict(frozen=True)

    pictures: list[str] = Field(
        min_length=1, description="pictures, folders (searched downwards), globs, .txt lists"
    )
    profile: Profile = Field("default", description="a named set of models, as of `lasr build`")
    device: Device = Field("auto", description="where the networks run")
    precision: Precision = Field("auto", description="of the networks, as of `lasr build`")
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=LARGEST, description="pictures with more pixels are left out"
    )

    @property
    def build(self) -> BuildConfig:
        """A build with these parameters and the build's defaults for all others."""
        given = {
            name: value
            for name, value in self
            if name in BuildConfig.model_fields and name != "out"
        }
        return BuildConfig(images=self.pictures, **given)

    def typed_as(self, command: str, flag: str = "") -> list[object]:
        """A command of `lasr` over the same pictures. flag: what it takes them by."""
        by = [flag] if flag else []
        return ["lasr", command, *by, *self.pictures, "--profile", self.profile]
