"""Prefect's plugin hook: found under every name that an installation may have, and light."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_the_installed_plugin_is_the_light_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["prefect.plugins"] == {"la-sr": "pipeline.flows.plugin"}


@pytest.mark.parametrize("name", ["pipeline.flows.plugin", "pipeline.flows"])
def test_the_hook_is_found_and_loads_no_flow(name: str, tmp_path: Path) -> None:
    """The second name is that of installations made before the hook had a module of its own."""
    code = f"""
import sys
from importlib.metadata import EntryPoint
from prefect._internal.plugins.manager import build_manager
from prefect._internal.plugins.spec import HookSpec
from prefect.client.orchestration import PrefectClient
plugins = build_manager(HookSpec)
before = PrefectClient.read_deployment_by_name
plugins.register(EntryPoint("la-sr", {name!r}, "prefect.plugins").load())
(hook,) = plugins.hook.setup_environment.get_hookimpls()
hook.function(ctx=None)  # as Prefect calls it
assert PrefectClient.read_deployment_by_name is not before
heavy = ("pipeline.flows.flow", "pipeline.config", "prefect.flows", "torch", "pyarrow", "duckdb")
loaded = [name for name in heavy if name in sys.modules]
assert not loaded, loaded
"""
    # In a folder without prefect.toml: Prefect would load the installed plugin by itself.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_deployments_name_the_flow_by_the_package() -> None:
    entrypoint = EntryPoint("flow", "pipeline.flows:build_patches", "")
    assert entrypoint.load().name == "build-patches"
    with pytest.raises(ImportError, match="no_such_name"):
        from pipeline.flows import no_such_name  # type: ignore[attr-defined] # noqa: F401
