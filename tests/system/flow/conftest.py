"""A project that builds through Prefect, with a server of its own or the one of all tests here."""

import base64
import json
import logging
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from pipeline.config import BuildConfig
from pipeline.flows import flow as flows
from tests.support.servers import (
    ROOT,
    environment,
    postgresql,
    postgresql_bin,
    prefect_server,
    process,
)

PASSWORD = "me:a b&c"  # as docs/prefect.md and the compose file set it
AUTHORIZED = {"Authorization": f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"}


@dataclass
class Project:
    """A project's folder and what its commands need."""

    folder: Path
    environment: dict[str, str]
    database: str | None = None  # PostgreSQL's URL, None for SQLite

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=500
        )

    def pipeline_run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "pipeline.run", "--profile", "test", *flags)

    def ask(self, what: str, **question: Any) -> Any:
        """The server's REST API: all `what` (deployments, flow_runs, …) that match."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{what}/filter",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"} | AUTHORIZED,
        )
        return json.load(urllib.request.urlopen(request, timeout=100))

    @contextmanager
    def background(self, *argv: str) -> Iterator[Path]:
        with process(list(argv), self.folder, self.environment) as log:
            yield log


def new_project(folder: Path, database: Path | None = None) -> Project:
    for name in ("prefect.toml", "prefect.yaml", "automations.yaml"):
        shutil.copy(ROOT / name, folder)
    return Project(folder, environment(folder, database))


def send(url: str, body: bytes | None, headers: dict[str, str], method: str) -> Any:
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=100)
    except urllib.error.HTTPError as error:
        return error


def last_run(server: Project) -> dict[str, Any]:
    run: dict[str, Any] = server.ask("flow_runs", sort="START_TIME_DESC", limit=1)[0]
    return run


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """With `prefect server start`, on PostgreSQL where that is installed, else on SQLite.

    It has a password, which all commands of the project know.
    """
    project = new_project(tmp_path_factory.mktemp("server"))
    project.environment["PREFECT_SERVER_API_AUTH_STRING"] = PASSWORD
    project.environment["PREFECT_API_AUTH_STRING"] = PASSWORD
    programs = postgresql_bin()
    if programs is None:
        with prefect_server(project.folder, project.environment) as api:
            project.environment["PREFECT_API_URL"] = api
            yield project
        return
    with postgresql(programs) as project.database:
        url = project.database.replace("postgresql://", "postgresql+asyncpg://")
        on_postgresql = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
        with prefect_server(project.folder, project.environment | on_postgresql) as api:
            project.environment["PREFECT_API_URL"] = api
            yield project


@pytest.fixture
def here(
    server: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Project]:
    """This process as a client of that server, with no pause before a retry."""
    monkeypatch.setattr(flows, "RETRY_SECONDS", 0)
    logging.getLogger("prefect").addHandler(caplog.handler)  # they do not reach the root logger
    known = {PREFECT_API_URL: server.environment["PREFECT_API_URL"]}
    with temporary_settings(known | {PREFECT_API_AUTH_STRING: PASSWORD}):
        yield server
    logging.getLogger("prefect").removeHandler(caplog.handler)


@pytest.fixture
def config(photographs: Path, tmp_path: Path) -> BuildConfig:
    """Seven photographs, a part each."""
    return BuildConfig(
        images=[str(photographs)], out=tmp_path / "patches.parquet", profile="test",
        k=1, shard_size=1,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def open_streams() -> None:
    """Prefect's handlers write to the standard error of the test that set them up, now closed."""
    for logger in [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", []):
            if getattr(getattr(handler, "stream", None), "closed", False):
                handler.stream = sys.stderr
