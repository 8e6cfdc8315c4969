"""The Prefect flow, for real: with its embedded server, served, and through a work pool."""

import base64
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
from PIL import Image
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from lasr.doctor.__main__ import main as doctor
from lasr.errors import UserError
from pipeline.build import plan
from pipeline.build import shard as stages
from pipeline.build.publish import Summary
from pipeline.config import BuildConfig
from pipeline.flows import artifacts
from pipeline.flows import flow as flows
from tests.support.servers import (
    PREFECT,
    ROOT,
    environment,
    postgresql,
    postgresql_bin,
    prefect_server,
    process,
    wait_for,
)

PASSWORD = "me:a b&c"  # as docs/prefect.md and the compose file set it
AUTHORIZED = {"Authorization": f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"}
pytestmark = pytest.mark.xdist_group("prefect")  # one server for all of them


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
        return self.run(sys.executable, "-m", "pipeline.run", "--profile", "offline", *flags)

    def ask(self, what: str, **question: Any) -> Any:
        """The server's REST API: all `what` (deployments, flow_runs, …) that match."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{what}/filter",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"} | AUTHORIZED,
        )
        return json.load(urllib.request.urlopen(request, timeout=10))

    @contextmanager
    def background(self, *argv: str) -> Iterator[Path]:
        with process(list(argv), self.folder, self.environment) as log:
            yield log


def new_project(folder: Path, database: Path | None = None) -> Project:
    for name in ("prefect.toml", "prefect.yaml", "automations.yaml"):
        shutil.copy(ROOT / name, folder)
    return Project(folder, environment(folder, database))


@pytest.fixture(scope="module")
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


def counts(manifest: Path) -> dict[str, int]:
    sql = f"SELECT role, count(*) FROM '{manifest}/*.parquet' GROUP BY role"
    return dict(duckdb.sql(sql).fetchall())


def last_run(server: Project) -> dict[str, Any]:
    run: dict[str, Any] = server.ask("flow_runs", sort="START_TIME_DESC", limit=1)[0]
    return run


def test_the_doctor_finds_the_server_well(
    server: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(server.folder)
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, server.environment[name])
    status, said = doctor(["--profile", "offline"]), capsys.readouterr()
    assert status == 0, said
    assert f"at {server.environment['PREFECT_API_URL']}, healthy" in said.out


def test_pipeline_run_builds_through_the_flow(photographs: Path, tmp_path: Path) -> None:
    """With a profile that names no server and a database that only a newer Prefect could open."""
    project = new_project(tmp_path)
    home = Path(project.environment["PREFECT_HOME"])
    home.mkdir()
    profile = 'active = "mine"\n[profiles.mine]\nPREFECT_LOGGING_LEVEL = "INFO"\n'
    (home / "profiles.toml").write_text(profile)
    with closing(sqlite3.connect(home / "prefect.db")) as file, file:
        file.execute("CREATE TABLE alembic_version (version_num VARCHAR)")
        file.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    before = (home / "prefect.db").read_bytes()
    flags = ["--images", str(photographs), "--k", "2", "--limit", "3", "--shard-size", "2"]
    done = project.pipeline_run(*flags)
    assert done.returncode == 0, done.stderr
    assert "photographs: 3: 3 ok" in done.stdout and "6 lr, 6 hr" in done.stdout
    assert "UNTRAINED" in done.stderr and "build-patches" in done.stderr
    assert counts(project.folder / "data/patches.parquet") == {"lr": 6, "hr": 6}
    assert "Traceback" not in done.stderr and "not shown" not in done.stderr
    assert done.stderr.count("recorded in a temporary database only") == 1
    assert "attempts failed" not in done.stderr and "View at" not in done.stderr
    assert (home / "prefect.db").read_bytes() == before
    assert not embedded_servers(project)


def embedded_servers(project: Project) -> list[psutil.Process]:
    """The processes of servers that a command in this project started."""
    found = []
    for running in psutil.process_iter():
        with suppress(psutil.Error):
            mine = running.environ().get("PREFECT_HOME") == project.environment["PREFECT_HOME"]
            if mine and any(word.endswith("embedded.py") for word in running.cmdline()):
                found.append(running)
    return found


def test_the_server_ends_with_a_build_that_is_killed(
    photographs: Path, tmp_path: Path, prefect_database: Path
) -> None:
    """tests/pipeline/flows/test_server.py tries all signals; here the server is the real one."""
    project = new_project(tmp_path, prefect_database)
    argv = [sys.executable, "-m", "pipeline.run", "--profile", "offline", "--images"]
    with project.background(*argv, str(photographs)) as log:
        wait_for("the flow", lambda: "Beginning flow run" in log.read_text(), log)
        (server,) = embedded_servers(project)
        parent = server.parent()
        assert parent
        parent.kill()
        psutil.wait_procs([server], timeout=100)
        assert not embedded_servers(project)


def check_form(deployment: dict[str, Any]) -> None:
    """Prefect's form: the flags of `pipeline.run` with their descriptions and bounds."""
    schema = deployment["parameter_openapi_schema"]
    fields = BuildConfig.model_fields
    assert schema["required"] == ["images"] and deployment["enforce_parameter_schema"]
    assert schema["properties"].keys() == fields.keys() - {"dry_run"}
    for name, field in schema["properties"].items():
        assert field["description"] == fields[name].description
    form = schema["properties"]
    assert form["k"]["minimum"] == 1 and form["k"]["default"] == 8
    assert form["strategy"]["enum"] == ["depth", "random", "overlap", "inclusion"]
    assert form["images"]["minItems"] == 1
    assert form["min_separation"]["anyOf"][0] == {"type": "integer", "minimum": 0}


def test_the_served_deployment(photographs: Path, server: Project) -> None:
    """As the README types it: serve, then `prefect deployment run build-patches -p … --watch`."""
    run = [PREFECT, "deployment", "run"]
    server.environment["LASR_ROOTS"] = f"{photographs}:{server.folder}:s3://bucket/photos"
    with server.background(sys.executable, "-m", "pipeline.flows") as log:
        wait_for("the deployment", lambda: server.ask("deployments"), log)
        (deployment,) = server.ask("deployments")
        assert deployment["description"] == flows.ABOUT
        check_form(deployment)

        out = server.folder / "served.parquet"
        parameters = {"images": [str(photographs)], "profile": "offline", "k": 2, "limit": 3}
        parameters |= {"shard_size": 2, "out": str(out)}
        pairs = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in parameters.items()]
        flags = [flag for pair in pairs for flag in ("-p", pair)]
        done = server.run(*run, "build-patches", *flags, "--watch")
        assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
        assert counts(out) == {"lr": 6, "hr": 6}
        assert "3 photographs, 3 to do" in done.stdout  # log lines, not only states
        check_artifacts(server, last_run(server)["id"])

        nowhere = json.dumps(parameters | {"images": ["nowhere"]})
        failed = server.run(*run, "build-patches/build-patches", "--params", nowhere, "--watch")
        assert failed.returncode == 1, failed.stdout + failed.stderr
        assert "nowhere: no such folder" in " ".join(failed.stdout.split())
        assert "Traceback" not in failed.stdout + log.read_text()
        assert "nowhere: no such folder" in last_run(server)["state"]["message"]

        outside = server.folder.parent / "somewhere-else" / "patches.parquet"
        started = create_run(server, deployment, parameters | {"out": str(outside)})
        by_id = {"id": {"any_": [json.load(started)["id"]]}}

        def ended() -> dict[str, Any] | None:
            (found,) = server.ask("flow_runs", flow_runs=by_id)
            return found["state"] if found["state"]["type"] in ("FAILED", "COMPLETED") else None

        wait_for("the run's end", ended, log)
        message = (ended() or {})["message"]
        assert message.startswith(f"--out {outside}: outside of what this deployment may use")
        assert not outside.parent.exists()

        refused = create_run(server, deployment, {"images": ["a"], "k": 0})
        assert refused.status == 409 and b"0 is less than the minimum of 1" in refused.read()
        assert server.run(*run, "no-such-name").returncode == 1


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


def send(url: str, body: bytes | None, headers: dict[str, str], method: str) -> Any:
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as error:
        return error


def test_pages_of_the_server_itself_reach_it(server: Project) -> None:
    own = {"Origin": "http://127.0.0.1:4200"}
    answer = send(f"{server.environment['PREFECT_API_URL']}/health", None, own, "GET")
    assert answer.headers["access-control-allow-origin"] == own["Origin"]


def test_the_server_asks_for_its_password(server: Project) -> None:
    api = server.environment["PREFECT_API_URL"]
    form = {"Content-Type": "application/json"}
    assert send(f"{api}/deployments/filter", b"{}", form, "POST").status == 401
    assert send(f"{api}/deployments/filter", b"{}", form | AUTHORIZED, "POST").status == 200


def create_run(server: Project, deployment: dict[str, Any], parameters: dict[str, Any]) -> Any:
    """Ask for a run as Prefect's page does; returns the server's answer."""
    address = f"{server.environment['PREFECT_API_URL']}/deployments/{deployment['id']}"
    form = {"Content-Type": "application/json"} | AUTHORIZED
    body = json.dumps({"parameters": parameters}).encode()
    return send(f"{address}/create_flow_run", body, form, "POST")


def check_artifacts(server: Project, run: str) -> None:
    found = server.ask("artifacts", artifacts={"flow_run_id": {"any_": [run]}})
    by_key = {artifact["key"].removeprefix("build-patches-"): artifact for artifact in found}
    assert by_key.keys() == {"progress", "counts", "picture", "words"}
    assert by_key["progress"]["data"] == 100
    table = json.loads(by_key["counts"]["data"])
    assert table == [{"status": "ok", "photographs": 3, "lr": 6, "hr": 6}]
    words = json.loads(by_key["words"]["data"])
    assert len(words) == 10 and 1 <= words[0]["lr patches"] <= 6
    assert by_key["words"]["description"].startswith("UNTRAINED")
    assert "](data:image/jpeg;base64," in by_key["picture"]["data"]


def test_a_work_pool(photographs: Path, server: Project) -> None:
    """As prefect.yaml says: create the pool, deploy, start a worker, run."""
    created = server.run(PREFECT, "work-pool", "create", "la-sr", "--type", "process")
    assert created.returncode == 0, created.stdout + created.stderr
    deployed = server.run(PREFECT, "--no-prompt", "deploy", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    (deployment,) = server.ask("deployments")
    assert deployment["work_pool_name"] == "la-sr"
    check_form(deployment)
    server.environment["LASR_ROOTS"] = f"{photographs}:{server.folder}"  # of the worker
    with server.background(PREFECT, "worker", "start", "--pool", "la-sr") as log:
        flags = ["-p", f'images=["{photographs}"]', "-p", "profile=offline", "-p", "limit=2"]
        command = [PREFECT, "deployment", "run", "build-patches", *flags, "--watch"]
        done = server.run(*command, "-p", "k=2", "-p", "out=pool/patches.parquet")
        assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
    # A relative path means the project's folder, wherever the worker runs its flows.
    assert counts(server.folder / "pool/patches.parquet") == {"lr": 4, "hr": 4}


def test_killed_runs_are_looked_after(server: Project) -> None:
    done = server.run(PREFECT, "automation", "create", "--from-file", "automations.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (automation,) = server.ask("automations")
    assert automation["enabled"] and automation["trigger"]["posture"] == "Proactive"
    assert automation["actions"][0]["state"] == "CRASHED"
    settings = tomllib.loads((ROOT / "prefect.toml").read_text())
    assert automation["trigger"]["within"] == 3 * settings["flows"]["heartbeat_frequency"]


def test_postgresql_holds_the_runs(here: Project, photographs: Path) -> None:
    if here.database is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    config = BuildConfig(
        images=[str(photographs)], out=here.folder / "pg.parquet", profile="offline", limit=1
    )
    flows.build(config)
    sql = "SELECT state_type, parameters->>'out' FROM flow_run ORDER BY created DESC LIMIT 1"
    psql = [str(postgresql_bin()) + "/psql", "-At", here.database, "-c", sql]
    answer = subprocess.run(psql, capture_output=True, text=True, check=True).stdout
    assert answer == f"COMPLETED|{config.out}\n"


def fault(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[str]:
    """Let parts fail that often, half-way; returns a list that grows with every try."""
    tries: list[str] = []
    make = stages.build_shard

    def failing(build: Any, shard: Any, tick: Any) -> str:
        tries.append(shard.name)
        if len(tries) <= times:
            tick(1)
            time.sleep(0.3)
            raise error
        return make(build, shard, tick)

    monkeypatch.setattr(stages, "build_shard", failing)
    return tries


@pytest.fixture
def config(photographs: Path, tmp_path: Path) -> BuildConfig:
    """Seven photographs, a part each."""
    return BuildConfig(
        images=[str(photographs)], out=tmp_path / "patches.parquet", profile="offline",
        k=1, shard_size=1,
    )  # fmt: skip


def test_a_build_is_prepared_once(
    here: Project, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command finds photographs and weights before Prefect starts; the flow uses them."""
    prepared = plan.prepare(config)
    monkeypatch.setattr(plan, "prepare", lambda _: pytest.fail("prepared again"))
    assert flows.build(config, prepared)["patches"] == {"lr": 7, "hr": 7}


def test_a_passing_fault_is_tried_again(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tries = fault(monkeypatch, OSError(5, "Input/output error"), times=1)
    assert flows.build(config)["patches"] == {"lr": 7, "hr": 7}
    assert len(tries) == 8 and tries[0] == tries[1]
    assert "Input/output error" in caplog.text and "Traceback" not in caplog.text
    assert "photographs: 7/7 img" in capfd.readouterr().err  # the first try is not counted


def test_a_fault_that_stays_is_one_line(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = fault(monkeypatch, OSError(28, "No space left on device"), times=9)
    with pytest.raises(UserError, match="No space left on device"):
        flows.build(config)
    assert tries.count(tries[0]) == 3
    assert len(set(tries)) < 7  # another may have begun meanwhile, not all
    assert "Traceback" not in caplog.text
    assert last_run(here)["state"]["type"] == "FAILED"


def test_what_the_user_must_mend_is_not_tried_again(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = fault(monkeypatch, UserError("weights are not here"), times=9)
    with pytest.raises(UserError, match="weights are not here"):
        flows.build(config)
    assert tries.count(tries[0]) == 1 and len(tries) < 7
    assert "Traceback" not in caplog.text


def test_ctrl_c_stops_after_the_photographs_in_work(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The run is Cancelled, what is finished is kept, and the same command goes on."""
    tries, make = [], stages.build_shard

    def pressing(job: Any, shard: Any, tick: Any) -> str:
        tries.append(shard.name)
        if len(tries) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # the main thread handles it
        return make(job, shard, tick)

    monkeypatch.setattr(stages, "build_shard", pressing)
    with pytest.raises(KeyboardInterrupt, match="1 of 7 parts made"):
        flows.build(config)
    assert len(tries) == 2 and last_run(here)["state"]["type"] == "CANCELLED"
    error = capfd.readouterr().err
    assert error.count("stopping after the photographs in work; Ctrl-C again stops at once") == 1
    assert "Traceback" not in error + caplog.text and "ERROR" not in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert flows.build(config)["patches"] == {"lr": 7, "hr": 7}
    assert len(tries) == 2 + 6


def test_a_second_ctrl_c_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(flows.os, "_exit", end)
    with pytest.raises(SystemExit, match="130"), flows._until_stopped():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.endswith("stopped at once; run the same command to resume\n")


def test_out_of_memory_names_what_to_lower(
    here: Project, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch, MemoryError("Unable to allocate 8.00 GiB"), times=9)
    with pytest.raises(UserError, match=r"out of memory \(Unable .*\); lower --workers"):
        flows.build(config)


def test_a_manifest_in_object_storage_has_its_counts_alone(
    here: Project, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from prefect import flow

    summary = Summary("s3://b/p.parquet", "s3://b/i.parquet", 1, {"ok": 3}, {"lr": 6, "hr": 6})
    run = flow(lambda: artifacts.show_counts(summary), name="counts")
    run()
    (table,) = here.ask("artifacts", artifacts={"key": {"any_": ["build-patches-counts"]}},
                        sort="CREATED_DESC", limit=1)  # fmt: skip
    assert json.loads(table["data"]) == [{"status": "ok", "photographs": 3}]
    assert "6 lr patches" in table["description"] and "not shown" not in caplog.text


def test_errors_inside_the_flow_are_one_line(
    here: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder := tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 80)).save(folder / "sm\x1b[2Jall.png")
    config = BuildConfig(images=[str(folder)], out=tmp_path / "o.parquet", profile="offline")
    with pytest.raises(UserError, match=r"none of 1 photographs gave a patch \(1 too_small\)"):
        flows.build(config)
    assert "Traceback" not in caplog.text and "\x1b[2J" not in caplog.text


def test_a_bug_is_not_hidden(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault(monkeypatch, KeyError("a bug"), times=9)
    with pytest.raises(KeyError, match="a bug"):
        flows.build(config)
    assert "Traceback" in caplog.text


def test_what_is_only_shown_cannot_fail_a_build(
    here: Project,
    config: BuildConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no artifacts today")

    monkeypatch.setattr("pipeline.report.overview.describe", broken)
    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(artifacts.ui, name, broken)
    assert flows.build(config)["patches"] == {"lr": 7, "hr": 7}
    assert "not shown in Prefect's UI: no artifacts today" in caplog.text


def test_parameters_that_no_server_checked(here: Project) -> None:
    state = flows.build_patches(images=["a"], k=0, return_state=True)
    assert state.is_failed()
    assert state.message == "k: Input should be greater than or equal to 1"
