"""Images and services, without a container engine; docker/check.py tests more."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml

from lasr.__main__ import main
from pipeline.roots import VARIABLE
from tests.support.servers import BIN, ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"
COMPOSE = [ROOT / "docker/compose.yaml", ROOT / "docker/compose.gpu.yaml"]
LINES = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()


def instructions(word: str) -> list[str]:
    return [line.removeprefix(word).strip() for line in LINES if line.startswith(f"{word} ")]


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE[0].read_text())["services"]
    return found


def test_the_dockerfile_passes_the_linter() -> None:
    done = subprocess.run([BIN / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.name)
def test_compose_files_follow_the_specification(file: Path) -> None:
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_base_images_are_pinned_and_no_container_runs_as_root() -> None:
    stages = {line.split()[-1] for line in instructions("FROM")}
    bases = {line.split()[0] for line in instructions("FROM")} - stages
    bases |= {s["image"] for s in services().values() if "build" not in s}
    assert all(re.search(r":\d+\.\d+(\.\d+)?-", base) for base in bases), bases
    targets = {service["build"]["target"] for service in services().values() if "build" in service}
    assert targets < stages and instructions("USER") == ["1000:1000"] * len(targets)
    assert all(service["user"] not in ("root", "0", "0:0") for service in services().values())


def test_every_permanent_service_has_a_health_check() -> None:
    for name, service in services().items():
        assert "healthcheck" in service or "profiles" in service, name
    for service in services().values():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and "healthcheck" in services()[needed]


def test_what_is_copied_exists_and_nothing_else_is_sent() -> None:
    sources = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in sources)
    ignore = [s for s in (ROOT / ".dockerignore").read_text().splitlines() if not s.startswith("#")]
    assert ignore[0] == "*" and ignore[-1] == "**/__pycache__"
    assert {line.removeprefix("!") for line in ignore[1:-1]} == sources - {"lasr/__init__.py"}


def test_each_program_is_copied_with_what_it_imports() -> None:
    stages = re.split(r"(?m)^FROM .* AS ", "\n".join(LINES))[1:]
    copied = {stage.split()[0]: set(re.findall(r"(?m)^COPY (\w+) \1$", stage)) for stage in stages}
    assert copied["pipeline"] == {"lasr", "schemas", "pipeline"}
    assert copied["trainer"] == {"lasr", "schemas", "trainer"}


def test_constraints_hold_for_every_installation() -> None:
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert len(installs) == 4
    for line in installs:
        assert "--constraint constraints.txt" in line and "--no-cache-dir" in line
    named = re.findall(r"'\.\[([\w,]+)\]'", " ".join(installs))
    extras = {extra for names in named for extra in names.split(",")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras == {"pipeline", "trainer", "offline"}
    assert extras <= project["optional-dependencies"].keys()


def test_no_file_holds_a_secret() -> None:
    text = COMPOSE[0].read_text()
    passwords = re.findall(r"PASSWORD: (.*)", text)
    assert len(passwords) == 2
    for value in passwords:  # compose stops where the variable is missing
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", value)
    server, worker = services()["server"], services()["worker"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in server["environment"]
    assert "PREFECT_API_AUTH_STRING" in worker["environment"]
    for value in re.findall(r"AUTH_STRING: (.*)", text):
        assert re.fullmatch(r"\$\{PREFECT_AUTH:\?[^}]+\}", value)
    assert server["ports"] == ["127.0.0.1:4200:4200"]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "docker/.env" in ignored
    assert not re.search(r"(?i)(password|secret|token)\s*=", DOCKERFILE.read_text())


def test_commands_and_settings_are_real() -> None:
    commands = [json.loads(line) for line in instructions("CMD")]
    commands += [s["command"] for s in services().values() if "command" in s]
    names = {c[1] for c in commands if c[0] == "lasr"}
    assert names == {"build", "train"} and names < set(main.commands)
    used = {name for s in services().values() for name in s.get("environment", {})}
    for name in used - {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", VARIABLE}:
        assert getattr(prefect.settings, name).name == name  # raises where Prefect knows none


def test_check_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docker/check.py", "--help"], capture_output=True, text=True
    )
    assert "docker/check.py FOLDER" in done.stderr
