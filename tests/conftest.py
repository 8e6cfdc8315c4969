"""Real photographs, and one small manifest made of them by the product's own stages."""

import os
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

import pytest
import torch

from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from pipeline.demo import copy_photographs

torch.set_num_threads(1)  # the tests run two at a time on two cores


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven photographs that scikit-learn and scikit-image carry."""
    folder = tmp_path_factory.mktemp("photographs")
    copy_photographs(folder)
    return folder


@pytest.fixture(scope="session")
def manifest(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of all seven in two parts, profile offline, k = 4."""
    out = tmp_path_factory.mktemp("data") / "patches.parquet"
    config = BuildConfig(images=[str(photographs)], out=out, profile="offline", k=4, shard_size=4)
    run_stages(config)
    return out


def run_stages(config: BuildConfig) -> list[str]:
    """Build without Prefect; returns the names of the parts that had to be made."""
    build = plan_build(prepare(config))
    made = [build_shard(build.job, shard) for shard in build.plan.to_do]
    finish(build, made)
    return made
