"""Prefect's server as the project sets it up: who reaches it, and where it keeps the runs."""

import subprocess
from pathlib import Path

import pytest

from lasr.doctor.__main__ import main as doctor
from pipeline.config import BuildConfig
from pipeline.flows import flow as flows
from tests.support.servers import (
    postgresql_bin,
)
from tests.system.flow.conftest import AUTHORIZED, Project, send

pytestmark = pytest.mark.xdist_group("prefect")  # one server for all of them


def test_the_doctor_finds_the_server_well(
    server: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(server.folder)
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, server.environment[name])
    status, said = doctor(["--profile", "test"]), capsys.readouterr()
    assert status == 0, said
    assert f"at {server.environment['PREFECT_API_URL']}, healthy" in said.out


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:8000", "null"])
def test_pages_of_other_origins_reach_nothing(server: Project, origin: str) -> None:
    """With the project's prefect.toml: no answer to a simple request or a preflight is theirs.

    Prefect takes JSON that is called text/plain, which a page may send without asking. It cannot
    send the password with it.
    """
    preflight = {"Access-Control-Request-Method": "POST"}
    preflight |= {"Access-Control-Request-Headers": "content-type"}
    question = b'{"limit": 1}'
    requests: list[tuple[str, str, bytes | None, dict[str, str]]] = [
        ("GET", "health", None, {}),
        ("OPTIONS", "deployments/filter", None, preflight),
        ("POST", "deployments/filter", question, {"Content-Type": "application/json"}),
        ("POST", "deployments/filter", question, {"Content-Type": "text/plain"}),
    ]
    statuses = []
    for known in ({}, AUTHORIZED):
        for method, path, body, headers in requests:
            api = f"{server.environment['PREFECT_API_URL']}/{path}"
            answer = send(api, body, headers | known | {"Origin": origin}, method)
            statuses.append(answer.status)
            assert "access-control-allow-origin" not in answer.headers, (method, path, known)
    assert statuses == [200, 400, 401, 401, 200, 400, 200, 200]


def test_pages_of_the_server_itself_reach_it(server: Project) -> None:
    own = {"Origin": "http://127.0.0.1:4200"}
    answer = send(f"{server.environment['PREFECT_API_URL']}/health", None, own, "GET")
    assert answer.headers["access-control-allow-origin"] == own["Origin"]


def test_the_server_asks_for_its_password(server: Project) -> None:
    api = server.environment["PREFECT_API_URL"]
    form = {"Content-Type": "application/json"}
    assert send(f"{api}/deployments/filter", b"{}", form, "POST").status == 401
    assert send(f"{api}/deployments/filter", b"{}", form | AUTHORIZED, "POST").status == 200


def test_postgresql_holds_the_runs(here: Project, photographs: Path) -> None:
    if here.database is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    config = BuildConfig(
        images=[str(photographs)], out=here.folder / "pg.parquet", profile="test", limit=1
    )
    flows.build(config)
    sql = "SELECT state_type, parameters->>'out' FROM flow_run ORDER BY created DESC LIMIT 1"
    psql = [str(postgresql_bin()) + "/psql", "-At", here.database, "-c", sql]
    answer = subprocess.run(psql, capture_output=True, text=True, check=True).stdout
    assert answer == f"COMPLETED|{config.out}\n"
