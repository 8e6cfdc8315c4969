"""Real photographs, and one small manifest made of them by the product's own stages."""

import os
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "OMP_NUM_THREADS": "1",  # the tests run two at a time on two cores
}

import pytest
import torch

from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from pipeline.demo import copy_photographs

torch.set_num_threads(1)

# They take longest, so they start first: the workers of `pytest -n 2` then end together.
LONGEST = (
    "system/test_ray.py", "system/test_flow.py", "trainer/test_distributed.py",
    "system/test_kill.py", "system/test_resume.py", "system/test_chaos.py",
    "system/test_benchmarks.py", "pipeline/report/test_report.py", "trainer/test_train.py",
    "system/test_readme.py", "trainer/test_export.py", "trainer/test_step.py",
    "system/test_extend.py", "system/test_packaging.py", "system/test_object_storage.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker, where they share its fixtures; the longest first."""
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(_file(item)))
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(_file(item), len(order)))


def _file(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


@pytest.fixture(autouse=True)
def devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests marked `gpu` see the machine's GPUs; they are skipped where there is none.

    All others, and the processes that they start, run on the CPU on every machine.
    """
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elif not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seven photographs that scikit-learn and scikit-image carry."""
    folder = tmp_path_factory.mktemp("photographs")
    copy_photographs(folder)
    return folder


@pytest.fixture(scope="session")
def manifest(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of all seven in two parts, profile test, k = 4."""
    out = tmp_path_factory.mktemp("data") / "patches.parquet"
    config = BuildConfig(
        images=[str(photographs)], out=out, profile="test", k=4, shard_size=4, device="cpu"
    )
    run_stages(config)
    return out


def run_stages(config: BuildConfig) -> list[str]:
    """Build without Prefect; returns the names of the parts that had to be made."""
    build = plan_build(prepare(config))
    made = [build_shard(build.job, shard) for shard in build.plan.to_do]
    finish(build, made)
    return made
