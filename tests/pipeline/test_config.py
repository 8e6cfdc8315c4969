"""The model behind flags and form: composed of the stages' parameters, and quick to import."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from pipeline.config import BuildConfig
from pipeline.stages.captions import CaptionConfig
from pipeline.stages.depth import DepthConfig
from pipeline.stages.images import ImagesConfig
from pipeline.stages.select import SelectConfig

HEAVY = {
    "clip_interrogator", "diffusers", "duckdb", "imagehash", "open_clip", "prefect", "ray",
    "torch", "torchvision", "transformers",
}  # fmt: skip


def test_flags_keep_their_order() -> None:
    names = (
        "images out profile depth clip dictionary k min_separation strategy min_texture"
        " far_texture seed shard_size workers cache max_pixels device precision"
        " runner ray_address gpus_per_task verify keep_unreachable limit dry_run"
    )
    assert list(BuildConfig.model_fields) == names.split()


def test_a_stage_needs_its_own_parameters_only() -> None:
    """So a stage can be tried and tested without a build."""
    for stage in (ImagesConfig, DepthConfig, CaptionConfig, SelectConfig):
        config = stage(images=["photos"]) if stage is ImagesConfig else stage()
        whole = BuildConfig(images=["photos"])
        assert config.model_dump().items() <= whole.model_dump().items()


def test_a_config_is_checked_and_does_not_change() -> None:
    with pytest.raises(ValidationError, match="extra"):
        BuildConfig(images=["photos"], strategies="depth")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="frozen"):
        BuildConfig(images=["photos"]).k = 3  # type: ignore[misc]


@pytest.mark.parametrize("module", ["pipeline.config", "pipeline.build.plan", "pipeline.run"])
def test_flags_and_wrong_paths_load_no_large_library(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)
