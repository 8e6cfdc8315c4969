"""A build on a Ray cluster: a head, two workers, and a machine with photographs and manifest.

The command runs on the head, as does Prefect's server. Shards run on the workers only.
"""

import contextlib
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster import storage
from tests.cluster.builds import (
    PARTS,
    PHOTOGRAPHS,
    Rows,
    make_album,
    rows,
    rows_of_one_machine,
    same,
    same_or_one_line,
)
from tests.cluster.hosts import Host, Process, machines, until_answers
from tests.support.servers import BIN, PREFECT, environment
from tests.support.words import WORDS

pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

GCS, API = 6379, 4200


@pytest.fixture(scope="module")
def album(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_album(photographs, tmp_path_factory.mktemp("ray"), 900, 700)


@pytest.fixture(scope="module")
def words(album: Path) -> Path:
    file = album.parent / "words.txt"
    file.write_text("\n".join(WORDS))
    return file


@pytest.fixture(scope="module")
def expected(album: Path, words: Path) -> Rows:
    return rows_of_one_machine(album, workers=1, dictionary=words)


@dataclass
class Cluster:
    """The machines, with Ray and Prefect's server on them, and what a command needs."""

    folder: Path
    hosts: dict[str, Host]
    words: Path
    database: Path
    variables: dict[str, str] = field(default_factory=dict)
    storage: Process | None = None

    def serve_prefect(self) -> None:
        head = self.hosts["head"]
        home = head.home / "prefect"
        if not home.exists():
            environment(head.home, self.database)
        head.start([PREFECT, "server", "start", "--host", "0.0.0.0", "--port", str(API)],
                   environment=self.of(head))  # fmt: skip
        self.run(head, until_answers(API))

    def of(self, host: Host) -> dict[str, str]:
        """The environment of programs on a host."""
        plain = environment(host.home) | self.variables
        head = self.hosts["head"]
        return plain | {
            "PREFECT_API_URL": f"http://{head.address}:{API}/api", "RAY_USAGE_STATS_ENABLED": "0",
            "LASR_WEIGHTS": str(self.folder / "weights"), "RAY_worker_niceness": "0",
        }  # fmt: skip

    def start_ray(self, host: Host) -> Process:
        # It gives a busy machine 30 s to start.
        again = 'until "$@"; do "$1" stop --force; done'
        plain = ["sh", "-c", again, "sh", str(BIN / "ray"), "start", "--disable-usage-stats"]
        plain += ["--include-dashboard=false"] if host.name == "head" else []
        plain += ["--node-ip-address", host.address, "--object-store-memory", "100000000"]
        head = self.hosts["head"]
        if host is head:
            plain += ["--head", "--port", str(GCS), "--num-cpus", "0"]
        else:
            plain += ["--address", f"{head.address}:{GCS}", "--num-cpus", "1"]
            self.run(head, until_answers(GCS))
        return host.start(plain, environment=self.of(host))

    def until_workers(self, count: int) -> None:
        """Wait until so many machines offer a CPU."""
        code = f"""
            import ray, time
            ray.init("{self.hosts["head"].address}:{GCS}", logging_level="ERROR")
            while sum(n["Alive"] and "CPU" in n["Resources"] for n in ray.nodes()) != {count}:
                time.sleep(0.5)
        """
        self.run(self.hosts["head"], code)

    def run(self, host: Host, code: str) -> None:
        """Run lines of Python to their end."""
        asked = host.start([sys.executable, "-c", textwrap.dedent(code)], environment=self.of(host))
        assert asked.wait(400) == 0, asked.text

    def build(self, name: str) -> Process:
        """Type the command; its manifest is s3://data/NAME/patches.parquet."""
        head = self.hosts["head"]
        argv = [sys.executable, "-m", "pipeline.run", "--profile", "test", "--k", "2"]
        argv += ["--images", "s3://data/photos", "--out", f"s3://data/{name}/patches.parquet"]
        argv += ["--dictionary", str(self.words), "--shard-size", str(PHOTOGRAPHS // PARTS)]
        argv += ["--runner", "ray", "--ray-address", f"{head.address}:{GCS}", "--workers", "1"]
        return head.start(argv, environment=self.of(head))

    def finished(self, name: str, least: int = 0) -> int:
        """How many parts are made, also of a build that is not published yet."""
        return storage.parts(self.hosts["storage"], f"data/{name}", least)

    def under_way(self, name: str) -> Process:
        """A build whose first part is made."""
        build = self.build(name)
        self.finished(name, least=1)
        assert build.started.poll() is None, build.text
        return build

    def at_work(self) -> Host:
        """A worker that makes a part; waits until there is one."""
        for _ in range(1000):
            for name in ("one", "two"):
                for line in self.hosts[name].outside(Path("/proc")).glob("[0-9]*/cmdline"):
                    with contextlib.suppress(OSError):
                        if line.read_bytes().startswith(b"ray::") and b"build" in line.read_bytes():
                            return self.hosts[name]
            time.sleep(0.01)
        raise AssertionError("no worker makes a part")

    def failed(self, name: str, build: Process) -> None:
        """It says so in one line, and the parts that are made stay."""
        print(one_line(build))
        assert self.finished(name)

    def rows(self, name: str) -> Rows:
        here = self.folder / f"{name}.parquet"
        storage.download(self.hosts["storage"], f"data/{name}/patches.parquet", here)
        return rows(here)


@pytest.fixture(scope="module")
def cluster(
    album: Path, words: Path, prefect_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    if reason := storage.lacking():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    names = ("head", "one", "two", "storage")
    with machines(folder, *names, disks={"storage": 300}) as hosts:
        found = Cluster(folder, {host.name: host for host in hosts}, folder / "words.txt",
                        prefect_database)  # fmt: skip
        shutil.copy(words, found.words)
        with storage.bucket(found.hosts["storage"], "data") as found.variables:
            shutil.copytree(album, folder / "album")
            storage.upload(found.hosts["storage"], folder / "album", "data/photos")
            found.serve_prefect()
            for name in names[:3]:
                found.start_ray(found.hosts[name])
            found.until_workers(2)
            yield found


def one_line(build: Process) -> str:
    """The error of a build that failed."""
    assert "Traceback" not in build.text, build.text
    said = [line for line in build.text.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, build.text
    return said[0]


def test_rows_are_those_of_one_machine(cluster: Cluster, expected: Rows) -> None:
    same(cluster, "plain", cluster.build("plain"), expected, 300)


def test_a_slow_worker_changes_nothing(cluster: Cluster, expected: Rows) -> None:
    cluster.hosts["one"].slow()
    try:
        began = time.monotonic()
        same(cluster, "slow", cluster.build("slow"), expected, 900)
        print(f"slow: {time.monotonic() - began:.0f} s")
    finally:
        cluster.hosts["one"].fast()


def test_the_storage_is_cut_off_for_a_minute(cluster: Cluster, expected: Rows) -> None:
    build = cluster.under_way("storage-cut")
    cluster.hosts["storage"].cut_off()
    same_or_one_line(cluster, "storage-cut", build, expected)


def test_a_worker_is_cut_off_for_a_minute(cluster: Cluster, expected: Rows) -> None:
    build = cluster.under_way("cut")
    cluster.hosts["one"].cut_off()
    same_or_one_line(cluster, "cut", build, expected)


def test_a_worker_dies(cluster: Cluster, expected: Rows) -> None:
    """The other makes its shards, also the one that it was at."""
    build = cluster.under_way("dies")
    cluster.at_work().power_off()
    same_or_one_line(cluster, "dies", build, expected)


def test_the_head_dies_with_the_command(cluster: Cluster, expected: Rows) -> None:
    """What is finished stays; on the new cluster the same command goes on."""
    cluster.under_way("head")
    for name in ("head", "one", "two"):
        if cluster.hosts[name].is_on:
            cluster.hosts[name].power_off()
    kept = cluster.finished("head")
    assert kept
    for name in ("head", "one", "two"):
        cluster.hosts[name].power_on()
    cluster.serve_prefect()
    for name in ("head", "one", "two"):
        cluster.start_ray(cluster.hosts[name])
    cluster.until_workers(2)
    same(cluster, "head", cluster.build("head"), expected, 900)


def test_the_storage_s_disk_is_full(cluster: Cluster, expected: Rows) -> None:
    build = cluster.under_way("full")
    filler = cluster.hosts["storage"].fill()
    status = build.wait(900)
    cluster.hosts["storage"].run(["rm", str(filler)])
    assert status == 1, build.text
    print(one_line(build))
    storage.until_writes(cluster.hosts["storage"], "data")
    same(cluster, "full", cluster.build("full"), expected, 600)
