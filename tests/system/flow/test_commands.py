"""The flow as users run it: by `lasr build`, served, and through a work pool."""

import json
import sqlite3
import sys
import tomllib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

from pipeline.config import BuildConfig
from pipeline.flows import flow as flows
from pipeline.flows.training import TrainingConfig
from tests.support.servers import (
    PREFECT,
    ROOT,
    wait_for,
)
from tests.system.flow.conftest import AUTHORIZED, Project, last_run, new_project, send

pytestmark = pytest.mark.xdist_group("prefect")  # one server for all of them


def counts(manifest: Path) -> dict[str, int]:
    sql = f"SELECT role, count(*) FROM '{manifest}/*.parquet' GROUP BY role"
    return dict(duckdb.sql(sql).fetchall())


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
    assert "tiny-clip: random weights" in done.stderr
    assert "INFO: 3 photographs, 3 to do" in done.stderr and "flow run" not in done.stderr
    last = "next: lasr report --manifest data/patches.parquet --out data/patches.html"
    assert done.stdout.splitlines()[-1] == last
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


# A command but for its own work, whose imports take as long as the server's.
COMMAND = """
import time
from pipeline.flows import server
server.load_flow = lambda: None
server.connect()
print("connected", flush=True)
time.sleep(1000)
"""


def test_the_server_ends_with_a_command_that_is_killed(
    tmp_path: Path, prefect_database: Path
) -> None:
    """tests/pipeline/flows/test_server.py tries all signals; here the server is the real one."""
    project = new_project(tmp_path, prefect_database)
    with project.background(sys.executable, "-c", COMMAND) as log:
        wait_for("the server", lambda: "connected" in log.read_text(), log)
        (server,) = embedded_servers(project)
        parent = server.parent()
        assert parent
        parent.kill()
        psutil.wait_procs([server], timeout=100)
        assert not embedded_servers(project)


def check_form(deployment: dict[str, Any]) -> None:
    """Prefect's form: the flags of `pipeline.run` with their descriptions and bounds.

    No field may be null: the form shows that as a choice, "Property is type None".
    """
    schema = deployment["parameter_openapi_schema"]
    assert '"null"' not in json.dumps(schema)
    assert all(field["title"] and field["description"] for field in schema["properties"].values())
    assert deployment["tags"] == ["la-sr"]
    if deployment["name"] != flows.NAME:
        assert schema["properties"].keys() == TrainingConfig.model_fields.keys()
        return
    fields = BuildConfig.model_fields
    assert schema["required"] == ["images"] and deployment["enforce_parameter_schema"]
    assert schema["properties"].keys() == fields.keys() - {"dry_run"}
    for name, field in schema["properties"].items():
        assert field["description"] == fields[name].description
    form = schema["properties"]
    assert form["k"]["minimum"] == 1 and form["k"]["default"] == 8
    assert form["strategy"]["enum"] == ["depth", "random", "overlap", "inclusion"]
    assert form["images"]["minItems"] == 1
    assert form["min_separation"]["type"] == "integer" and form["min_separation"]["minimum"] == 0


def deployments(server: Project) -> dict[str, dict[str, Any]]:
    return {deployment["name"]: deployment for deployment in server.ask("deployments")}


BOTH = {"build-patches", "train-and-evaluate"}


def test_the_served_deployment(photographs: Path, server: Project) -> None:
    """As the README types it: serve, then `prefect deployment run build-patches -p … --watch`."""
    run = [PREFECT, "deployment", "run"]
    server.environment["LASR_ROOTS"] = f"{photographs}:{server.folder}:s3://bucket/photos"
    with server.background(sys.executable, "-m", "pipeline.flows") as log:
        wait_for("the deployments", lambda: deployments(server).keys() == BOTH, log)
        for deployment in deployments(server).values():
            check_form(deployment)
        deployment = deployments(server)["build-patches"]
        assert deployment["description"] == flows.ABOUT

        out = server.folder / "served.parquet"
        parameters = {"images": [str(photographs)], "profile": "test", "k": 2, "limit": 3}
        parameters |= {"shard_size": 2, "out": str(out)}
        pairs = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in parameters.items()]
        flags = [flag for pair in pairs for flag in ("-p", pair)]
        done = server.run(*run, "build-patches", *flags, "--watch")
        assert done.returncode == 0, done.stdout + done.stderr + log.read_text()
        assert counts(out) == {"lr": 6, "hr": 6}
        assert "3 photographs, 3 to do" in done.stdout  # log lines, not only states
        about = last_run(server)
        assert about["name"] == f"served.parquet from {photographs.name} (test)"
        assert about["tags"] == ["la-sr"]
        tasks = server.ask("task_runs", flow_runs={"id": {"any_": [about["id"]]}})
        names = sorted(task["name"] for task in tasks)
        assert names == ["1 photograph: china.jpg", "2 photographs: astronaut.png to chelsea.png"]
        check_artifacts(server, about["id"])

        refused = create_run(server, deployment, {"images": ["a"], "k": 0})
        assert refused.status == 409 and b"0 is less than the minimum of 1" in refused.read()


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
    assert by_key["words"]["description"].startswith("random CLIP")
    assert "](data:image/jpeg;base64," in by_key["picture"]["data"]


@pytest.mark.slow
def test_a_work_pool(photographs: Path, server: Project) -> None:
    """As prefect.yaml says: create the pool, deploy, start a worker, run."""
    created = server.run(PREFECT, "work-pool", "create", "la-sr", "--type", "process")
    assert created.returncode == 0, created.stdout + created.stderr
    deployed = server.run(PREFECT, "--no-prompt", "deploy", "--all")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert deployments(server).keys() == BOTH
    for deployment in deployments(server).values():
        assert deployment["work_pool_name"] == "la-sr"
        assert deployment["global_concurrency_limit"]["limit"] == 1
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
