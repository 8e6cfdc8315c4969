"""The flags of `lasr serve`: how many runs at once, and when builds start by themselves."""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from lasr.weights.locate import Profile


class ServeConfig(BaseModel):
    """The flags of `lasr serve`."""

    limit: int = Field(1, ge=1, description="runs at the same time; others wait")
    tags: list[str] = Field([], description="tags of the runs, besides la-sr")
    images: list[str] = Field([], description="photographs of scheduled builds")
    out: Path = Field(Path("data/patches.parquet"), description="manifest of scheduled builds")
    profile: Profile = Field("default", description="models of scheduled builds")
    cron: str | None = Field(
        None, description="when builds start by themselves: minute, hour, day, month, weekday"
    )
    every: float | None = Field(None, ge=60, description="seconds between such builds instead")
    timezone: str = Field("UTC", description="of --cron, such as Europe/Berlin")

    @model_validator(mode="after")
    def _complete(self) -> "ServeConfig":
        if self.cron and self.every:
            raise ValueError("--cron and --every are two schedules: give one of them")
        if (self.cron or self.every) and not self.images:
            raise ValueError("--cron and --every need --images, which scheduled builds read")
        if self.images and not (self.cron or self.every):
            raise ValueError("--images is for scheduled builds: give --cron or --every, too")
        return self

    def schedules(self) -> list[Any]:
        """The schedule of builds as Prefect has it; none without --cron and --every."""
        if not self.images:
            return []
        from prefect.schedules import Cron, Interval

        images = [path if "://" in path else os.path.abspath(path) for path in self.images]
        parameters = {"images": images, "out": str(self.out), "profile": self.profile}
        if self.cron:
            return [Cron(self.cron, timezone=self.timezone, parameters=parameters)]
        return [Interval(self.every, timezone=self.timezone, parameters=parameters)]
