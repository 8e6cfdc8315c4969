"""Shards as Ray tasks, through Prefect's task runner, on a cluster of this machine's two cores."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from PIL import Image

from lasr.errors import UserError
from pipeline.build import ray as cluster
from pipeline.build.lock import sole_build
from pipeline.build.plan import plan_build, prepare
from pipeline.config import BuildConfig
from pipeline.flows import flow as flows
from tests.conftest import run_stages
from tests.support.servers import environment
from tests.support.words import WORDS
from tests.system.flow.conftest import PASSWORD, Project

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # at 15, workers wait for all that is busy
ray = pytest.importorskip("ray")

from prefect.settings import (  # noqa: E402
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    temporary_settings,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prefect")]  # one server for all
ROOT = Path(__file__).parents[3]


def watch_worker() -> None:
    """Runs in each Ray worker: note what it loads, and die once in the middle of a shard if told.

    LASR_TEST is a folder: `loads` gets a line per loading of models, `die` becomes `died`.
    """
    from pipeline.build import models, shard

    folder = Path(os.environ["LASR_TEST"])
    load, name = models.Models.__init__, shard.keep_part

    def noted(*given: Any) -> None:
        load(*given)
        with open(folder / "loads", "a") as file:
            file.write(f"{os.getpid()}\n")

    def last_words(*given: Any) -> str:
        with open(folder / "shards", "a") as file:
            file.write(f"{os.getpid()}\n")
        if (folder / "die").exists():
            (folder / "die").rename(folder / "died")
            os.kill(os.getpid(), signal.SIGKILL)
        return name(*given)

    models.Models.__init__ = noted  # type: ignore[method-assign]
    shard.keep_part = last_words  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def album(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pieces of four photographs; a shard of one takes a fraction of a second."""
    folder = tmp_path_factory.mktemp("ray") / "album"
    folder.mkdir()
    for path in sorted(photographs.iterdir())[:4]:
        with Image.open(path) as picture:
            picture.convert("RGB").crop((0, 0, 300, 280)).save(folder / f"{path.stem}.png")
    (folder.parent / "words.txt").write_text("\n".join(WORDS[:30]))
    return folder


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, server: Project) -> Iterator[Path]:
    """A Ray cluster with two workers, clients of the Prefect server of all tests here.

    Yields the folder of `watch_worker`.
    """
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(flows, "RETRY_SECONDS", 0)
    folder = tmp_path_factory.mktemp("watched")
    # By default it is below the current folder, and builds with another one use other workers.
    monkeypatch.setenv("LASR_WEIGHTS", str(folder / "weights"))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = {"LASR_TEST": str(folder), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    hook = {"env_vars": variables, "worker_process_setup_hook": watch_worker}
    ray.init(
        "local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False,
        log_to_driver=False, runtime_env=hook,
    )  # fmt: skip
    known = {PREFECT_API_URL: server.environment["PREFECT_API_URL"]}
    with temporary_settings(known | {PREFECT_API_AUTH_STRING: PASSWORD}):
        yield folder
    ray.shutdown()
    monkeypatch.undo()


def config(images: Path, out: Path, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {"profile": "test", "k": 2, "shard_size": 1, "workers": 1}
    plain |= {"dictionary": images.parent / "words.txt"}
    return BuildConfig(images=[str(images)], out=str(out), **(plain | changes))


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(out).to_table().to_pylist()
    return sorted(found, key=lambda row: str(row["patch_id"]))


@pytest.fixture(scope="module")
def expected(album: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows that the stages give in one process."""
    out = tmp_path_factory.mktemp("local") / "patches.parquet"
    run_stages(config(album, out))
    return rows(out)


def test_rows_are_those_of_one_process_though_a_worker_dies(
    album: Path, expected: list[dict[str, Any]], watched: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It costs its shard only, and each worker loads its models once."""
    monkeypatch.chdir(tmp_path)
    (watched / "die").touch()
    # A relative path is the user's, not the worker's.
    summary = flows.build(config(album, Path("data/patches.parquet"), runner="ray"))
    assert (watched / "died").exists()
    assert summary["parts"] == 4 and rows(tmp_path / "data/patches.parquet") == expected
    loads = Counter((watched / "loads").read_text().split())
    shards = Counter((watched / "shards").read_text().split())
    assert sum(shards.values()) == 5 and shards.keys() == loads.keys()
    assert set(loads.values()) == {1}
    assert flows.build(config(album, Path("data/patches.parquet"), runner="ray")) == summary
    assert not [path for path in tmp_path.rglob(".*") if path.suffix == ".tmp"]


def test_errors_of_a_worker_and_of_the_cluster_are_one_line(
    album: Path, watched: Path, tmp_path: Path
) -> None:
    out = tmp_path / "patches.parquet"
    with pytest.raises(UserError, match=r"^/proc/none: cannot be written .*same command"):
        flows.build(config(album, out, runner="ray", cache="/proc/none"))
    with pytest.raises(UserError, match="no machine of the cluster has 3 CPUs and 0 GPUs"):
        flows.build(config(album, out, runner="ray", workers=3))
    with pytest.raises(UserError, match=r"has 1 CPUs and 0\.5 GPUs"):
        flows.build(config(album, out, runner="ray", gpus_per_task=0.5))


def test_a_machine_that_does_not_see_what_the_others_see_is_named(
    album: Path, tmp_path: Path
) -> None:
    here = socket.gethostname()
    build = plan_build(prepare(config(album, tmp_path / "patches.parquet")))
    job, shard = build.job, build.plan.to_do[0]
    with pytest.raises(
        UserError, match=rf"patches.work: the cluster's machine {here} does not see"
    ):
        cluster.build_part(job, shard)
    with sole_build(job.config.work):
        moved = [replace(p, path=p.path.parent / "gone") for p in shard.photographs]
        with pytest.raises(UserError, match=rf"gone: the cluster's machine {here} does not see"):
            cluster.build_part(job, replace(shard, photographs=tuple(moved)))
        for other in (
            replace(job, depth=replace(job.depth, identity="other@1")),
            replace(job, clip=replace(job.clip, identity="other@1")),
        ):
            with pytest.raises(UserError, match="differ from those of this build, other@1"):
                cluster.build_part(other, shard)
        assert cluster.build_part(job, shard).startswith("part-")


def test_what_travels_has_absolute_paths(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = Path("words.txt")
    words.write_text("\n".join(WORDS[:24]))
    changes: dict[str, Any] = {"cache": "kept", "dictionary": words, "clip": "tiny-clip"}
    job = prepare(config(album, Path("a.parquet"), **changes)).job
    sent = cluster.portable(job).config
    assert sent.out == str(tmp_path / "a.parquet") and sent.cache == str(tmp_path / "kept")
    assert sent.dictionary == tmp_path / "words.txt" and sent.clip == "tiny-clip"
    stored = job.config.model_copy(update={"out": "s3://bucket/a.parquet"})
    assert cluster.portable(replace(job, config=stored)).config.out == "s3://bucket/a.parquet"


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'la-sr\[ray\]'"), cluster.connected(None):
        pytest.fail("connected to nothing")


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
        wanted = f"^--ray-address {address}: no Ray cluster .*refused.*`ray start --head`"
        with pytest.raises(UserError, match=wanted), cluster.connected(address):
            pytest.fail("connected to nothing")


def children(pid: int) -> list[int]:
    """All processes below one."""
    tree: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        tree.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = tree.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


# Python runs this at the start of every process of a test: the first part is finished, and the
# others wait in the middle until the file `hold` goes away. Whoever waits leaves a file.
HOLD = """
import os, time
folder, replace = os.environ["LASR_TEST"], os.replace

def held(source, target, **options):
    name = os.path.basename(str(target))
    if name.startswith("part-") and not name.endswith(".images.parquet"):
        try:
            os.close(os.open(f"{folder}/first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            os.close(os.open(f"{folder}/waiting", os.O_CREAT))
            while os.path.exists(f"{folder}/hold"):
                time.sleep(0.02)
    return replace(source, target, **options)

os.replace = held
"""


@pytest.mark.timeout(1200)
def test_ctrl_c_ends_the_cluster_and_the_same_command_carries_on(
    album: Path, expected: list[dict[str, Any]], tmp_path: Path, prefect_database: Path
) -> None:
    """As typed: a cluster of its own, Prefect's embedded server, Ctrl-C between two parts."""
    command = [sys.executable, "-m", "pipeline.run", "--images", str(album), "--k", "2"]
    command += ["--profile", "test", "--dictionary", str(album.parent / "words.txt")]
    # Two CPUs for each part: of two workers that start on two cores, one would be superfluous.
    command += ["--shard-size", "1", "--workers", "2", "--runner", "ray"]
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOLD)
    (tmp_path / "hold").touch()
    variables = environment(tmp_path, prefect_database) | {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "500"
    }
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "hook"), variables["PYTHONPATH"]])
    variables["LASR_TEST"] = str(tmp_path)
    log = tmp_path / "log"
    with open(log, "w") as out:
        build = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=out, stderr=out)
    work = tmp_path / "data/patches.work"
    while not (list(work.glob("*.images.parquet")) and (tmp_path / "waiting").exists()):
        assert build.poll() is None, log.read_text()
        time.sleep(0.05)
    below = children(build.pid)
    assert any("raylet" in Path(f"/proc/{pid}/comm").read_text() for pid in below)
    while build.poll() is None:  # Python drops an interrupt that comes while it clears an object
        build.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            build.wait(200)  # a second interrupt while a busy machine cleans up would cut that off
    assert build.returncode == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    while any(Path(f"/proc/{pid}").exists() for pid in below):  # else the test's own time limit
        time.sleep(0.2)
    kept = len(list(work.glob("*.images.parquet")))
    made = run_stages(config(album, tmp_path / "data/patches.parquet"))
    assert kept > 0 and len(made) == len(list(album.iterdir())) - kept > 0
    assert rows(tmp_path / "data/patches.parquet") == expected
