"""schemas <- pipeline, schemas <- trainer, and nothing else; only the flow module knows Prefect."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "schemas": {"schemas"},
    "pipeline": {"schemas", "pipeline"},
    "trainer": {"schemas", "trainer"},
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = imported(file) & ALLOWED.keys()
        assert ours <= ALLOWED[package], f"{file} imports {ours}"


def test_only_the_flow_module_imports_prefect() -> None:
    files = [f for package in ALLOWED for f in (ROOT / package).rglob("*.py")]
    assert [f.name for f in files if "prefect" in imported(f)] == ["flows.py"]


def test_trainer_runs_without_the_pipelines_libraries() -> None:
    code = """
import sys
pipelines = ("prefect", "duckdb", "diffusers", "clip_interrogator", "imagehash", "pipeline")
extras = ("matplotlib", "sklearn", "onnx", "onnxruntime", "onnxscript", "ncnn", "pyiqa")
for name in (*pipelines, *extras):
    sys.modules[name] = None  # an import of it now fails
import trainer.export, trainer.features, trainer.loop, trainer.run, trainer.upscale
import trainer.evaluate, trainer.metrics, trainer.sidebyside, trainer.curve
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
