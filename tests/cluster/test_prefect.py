"""Prefect's server on PostgreSQL on one machine, workers of a pool on two others.

The project, the photographs and the manifest are on a drive that all of them see.
"""

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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
from tests.cluster.hosts import ROOT, Host, Process, machines, until_answers
from tests.support.servers import PREFECT, environment, postgresql_bin

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

API, DATABASE = 4200, 5432


@pytest.fixture(scope="module")
def album(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_album(photographs, tmp_path_factory.mktemp("prefect"), 1500, 1100)


@pytest.fixture(scope="module")
def expected(album: Path) -> Rows:
    return rows_of_one_machine(album)


@dataclass
class Site:
    """The machines and what runs on them."""

    folder: Path
    hosts: dict[str, Host]
    works: dict[str, Process] = field(default_factory=dict)  # by host

    @property
    def project(self) -> Path:
        return self.folder / "shared"

    def of(self, host: Host) -> dict[str, str]:
        """The environment of programs on a host."""
        server = self.hosts["server"]
        return environment(host.home) | {
            "PREFECT_API_URL": f"http://{server.address}:{API}/api",
            "PWD": str(self.project), "LASR_ROOTS": str(self.folder),
        }  # fmt: skip

    def prefect(self, *argv: str, on: str = "server") -> Process:
        host = self.hosts[on]
        return host.start([PREFECT, *argv], self.project, self.of(host))

    def done(self, *argv: str) -> str:
        """Run a command of Prefect to its end."""
        asked = self.prefect(*argv)
        assert asked.wait() == 0, asked.text
        return asked.text

    def serve(self) -> None:
        """PostgreSQL and Prefect's server on it."""
        programs, server = postgresql_bin(), self.hosts["server"]
        assert programs
        as_user = ["runuser", "-u", "postgres", "--"]
        if server.run(["ls", "/mnt"]).find("database") < 0:
            server.run(["install", "-d", "-o", "postgres", "/mnt/database"], Path("/"))
            server.run([*as_user, str(programs / "initdb"), "-D", "/mnt/database", "-U", "prefect",
                        "--auth=trust", "--encoding=UTF8", "--no-sync"], Path("/mnt"))  # fmt: skip
        server.start([*as_user, str(programs / "postgres"), "-D", "/mnt/database", "-k", "/tmp",
                      "-h", "127.0.0.1", "-p", str(DATABASE), "-F"], Path("/mnt"))  # fmt: skip
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(DATABASE)]
        self.until(server, ready)
        url = f"postgresql+asyncpg://prefect@127.0.0.1:{DATABASE}/postgres"
        server.start(
            [PREFECT, "server", "start", "--host", "0.0.0.0", "--port", str(API)], self.project,
            self.of(server) | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url},
        )  # fmt: skip
        self.until(server, [sys.executable, "-S", "-c", until_answers(API)])

    def until(self, host: Host, argv: list[str], seconds: float = 400) -> None:
        """Repeat a command until it succeeds."""
        end = time.monotonic() + seconds
        while True:
            asked = host.start(argv, Path("/"), self.of(host))
            if asked.wait() == 0:
                return
            assert time.monotonic() < end, asked.text
            time.sleep(0.5)

    def work(self, name: str) -> None:
        """Start a worker of the pool."""
        argv = ("worker", "start", "--pool", "la-sr", "--name", name)
        self.works[name] = self.prefect(*argv, on=name)

    def build(self, name: str) -> Process:
        """Ask for a build and watch it; its manifest is NAME/patches.parquet."""
        given = {"images": [str(self.folder / "album")], "out": str(self.manifest(name))}
        given |= {"profile": "test", "k": 2, "shard_size": PHOTOGRAPHS // PARTS}
        parameters = ["--params", json.dumps(given), "--watch", "--watch-interval", "1"]
        return self.prefect("deployment", "run", "build-patches", *parameters)

    def manifest(self, name: str) -> Path:
        return self.folder / name / "patches.parquet"

    def rows(self, name: str) -> Rows:
        return rows(self.manifest(name))

    def failed(self, name: str, build: Process) -> None:
        print(build.text.splitlines()[-1])

    def parts(self, name: str) -> list[Path]:
        return list((self.folder / name / "patches.work").glob("part-*.images.parquet"))

    def under_way(self, name: str) -> Process:
        """A build whose first part is made."""
        build = self.build(name)
        while not self.parts(name):
            assert build.started.poll() is None, build.text
            time.sleep(0.1)
        return build

    def at_work(self) -> Host:
        """The machine on which the run of a build is."""
        for name in ("one", "two"):
            for line in self.hosts[name].outside(Path("/proc")).glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    if b"prefect.engine" in line.read_bytes():
                        return self.hosts[name]
        raise AssertionError("no worker has a run")


@pytest.fixture(scope="module")
def site(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if postgresql_bin() is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    folder = tmp_path_factory.mktemp("site")
    with machines(folder, "server", "one", "two") as hosts:
        found = Site(folder, {host.name: host for host in hosts})
        for name in ("prefect.toml", "prefect.yaml", "automations.yaml"):
            shutil.copy(ROOT / name, found.project)
        shutil.copytree(album, folder / "album")
        found.serve()
        found.done("work-pool", "create", "la-sr", "--type", "process")
        found.done("--no-prompt", "deploy", "--all")
        found.done("automation", "create", "--from-file", "automations.yaml")
        for name in ("one", "two"):
            found.work(name)
        yield found


def test_rows_are_those_of_one_machine(site: Site, expected: Rows) -> None:
    same(site, "plain", site.build("plain"), expected, 600)


def test_the_worker_dies(site: Site, expected: Rows) -> None:
    """The other takes the same build when it is asked for again."""
    build = site.under_way("dies")
    host = site.at_work()
    host.power_off()
    same_or_one_line(site, "dies", build, expected)
    host.power_on()
    site.work(host.name)


def test_the_worker_is_cut_off_for_a_minute(site: Site, expected: Rows) -> None:
    build = site.under_way("cut")
    site.at_work().cut_off()
    same_or_one_line(site, "cut", build, expected)


def test_a_slow_network_changes_nothing(site: Site, expected: Rows) -> None:
    for name in ("one", "two"):
        site.hosts[name].slow()
    build = site.build("slow")
    same_or_one_line(site, "slow", build, expected)
    for name in ("one", "two"):
        site.hosts[name].fast()


def test_the_server_is_cut_off_for_a_minute(site: Site, expected: Rows) -> None:
    build = site.under_way("server-cut")
    site.hosts["server"].cut_off()
    same_or_one_line(site, "server-cut", build, expected)


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_worker_with_a_wrong_clock(site: Site, expected: Rows, hours: float) -> None:
    """Behind, it leaves runs to the other worker, as it takes them for later; ahead, it builds."""
    host = site.hosts["one"]
    site.works["one"].signal(signal.SIGTERM)
    site.works["one"].wait()
    host.set_clock(hours)
    site.work("one")
    same(site, f"clock{hours}", site.build(f"clock{hours}"), expected, 600)
