"""Real photographs, and one small manifest made of them by the product's own stages."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Prefect would start one for what is asked of it without an address, and leave it running
    # where the process ends without its exit handlers, as workers of pytest and of Ray do.
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "OMP_NUM_THREADS": "1",  # the tests run two at a time on two cores
}

import pytest
import torch
from filelock import FileLock

from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from pipeline.demo import copy_photographs
from tests.support.servers import migrated_database

torch.set_num_threads(1)

# A shell ignores Ctrl-C for what it starts in the background, and commands under test inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
if hang_up and signal.getsignal(hang_up) is signal.SIG_IGN:  # as under nohup
    signal.signal(hang_up, signal.SIG_DFL)

# They take longest, so they start first: the workers then end together.
LONGEST = (
    "system/flow/test_commands.py", "trainer/test_distributed.py",
    "system/test_benchmarks.py", "trainer/test_train.py", "system/test_kill.py",
    "system/test_chaos.py", "system/test_readme.py", "trainer/test_step.py",
    "pipeline/report/test_report.py", "pipeline/report/test_browser.py", "trainer/test_failures.py",
    "system/test_object_storage.py",
    "system/test_proof.py", "trainer/test_export.py", "lasr/test_api.py", "system/test_extend.py",
    "system/test_profiles.py", "system/test_compatible.py", "system/test_safety.py",
    "pipeline/test_finetune.py", "trainer/watch/test_run.py", "pipeline/stages/test_select.py",
    "trainer/data/test_remote.py", "system/test_remote_training.py",
    "system/test_damage.py", "lasr/test_commands.py", "pipeline/inputs/test_changes.py",
    "lasr/doctor/test_doctor.py", "system/test_resume.py", "system/test_packaging.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker, where they share its fixtures; the longest first."""
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(_file(item)))
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(_file(item), len(order)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without groups each worker starts every server again, and nothing else would say so."""
    if session.config.getoption("loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "tests are not grouped by file"


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


@pytest.fixture(autouse=True)
def no_temporary_server() -> Iterator[None]:
    """Prefect started no server by itself in this process; it would outlive the tests."""
    yield
    module = sys.modules.get("prefect.server.api.server")
    started = list(module.SubprocessASGIServer._instances.values()) if module else []
    for server in started:
        server.stop()
    assert not started, "a client of Prefect had no address, and started a temporary server"


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Fills a folder once for all workers: the first that asks does, the others wait for it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own in the run's
        shared = shared.parent

    def filled(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def photographs(once: Once) -> Path:
    """The seven photographs that scikit-learn and scikit-image carry. No test may change them."""
    return once("photographs", copy_photographs)


@pytest.fixture(scope="session")
def prefect_database(once: Once) -> Path:
    """A new database of Prefect, to copy: making one takes longer than starting the server."""
    return once("prefect", migrated_database) / "prefect.db"


@pytest.fixture(scope="session")
def manifest(photographs: Path, once: Once) -> Path:
    """A manifest of all seven in two parts, profile test, k = 4. No test may change it."""
    plain: dict[str, Any] = {"images": [str(photographs)], "profile": "test", "device": "cpu"}

    def build(folder: Path) -> None:
        run_stages(BuildConfig(**plain, out=folder / "patches.parquet", k=4, shard_size=4))

    return once("data", build) / "patches.parquet"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; of a module, since its event loop runs as long as it does."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: `apt-get install chromium`")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=500_000)  # however slow the machine is
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def run_stages(config: BuildConfig) -> list[str]:
    """Build without Prefect; returns the names of the parts that had to be made."""
    build = plan_build(prepare(config))
    made = [build_shard(build.job, shard) for shard in build.plan.to_do]
    finish(build, made)
    return made
