"""The house: who may import whom, no cycles, no crowded room; Prefect is known in one place."""

import ast
import fnmatch
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "schemas": {"schemas"},
    "lasr": {"schemas", "lasr"},
    "lasr.ui": {"schemas", "lasr", "lasr.ui", "pipeline", "trainer"},  # a page over both programs
    "pipeline": {"schemas", "lasr", "pipeline"},
    "trainer": {"schemas", "lasr", "trainer"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("schemas", "lasr", "pipeline", "trainer")
    for path in sorted((ROOT / package).rglob("*.py"))
}
CROWD = 12  # files of a sub-package


def imports(path: Path, on_load: bool = False) -> set[str]:
    """Dotted names that a file imports; on_load: only those that importing it imports."""
    names = set[str]()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if not (on_load and (is_function or typing_only)):
                pending.append(node)
    return names


def modules(path: Path, on_load: bool = False) -> set[str]:
    """Our own modules that a file imports."""
    named = imports(path, on_load)
    return {name for name in named if name in FILES} | {
        owner for name in named if (owner := name.rpartition(".")[0]) in FILES and name not in FILES
    }


def package_of(name: str) -> str:
    """The package of a module by the rules above: `lasr.ui` is one of its own."""
    return "lasr.ui" if f"{name}.".startswith("lasr.ui.") else name.split(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_they_may(package: str) -> None:
    for name, path in FILES.items():
        if package_of(name) == package:
            ours = {package_of(other) for other in modules(path)}
            assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: modules(path) - {name} for name, path in FILES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # else CycleError


def test_only_the_flows_import_prefect() -> None:
    knowing = {
        name
        for name, path in FILES.items()
        if any(other.split(".")[0] == "prefect" for other in imports(path))
    }
    assert knowing and all(name.startswith("pipeline.flows") for name in knowing)


def test_no_folder_is_crowded() -> None:
    for package in ("schemas", "lasr", "pipeline", "trainer"):
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]:
            files = list(folder.glob("*.py"))
            assert len(files) <= CROWD, f"{folder} holds {len(files)} files"


def test_trainer_runs_without_the_pipelines_libraries() -> None:
    code = """
import sys
pipelines = ("prefect", "duckdb", "diffusers", "clip_interrogator", "imagehash", "pipeline")
extras = ("matplotlib", "sklearn", "onnx", "onnxruntime", "onnxscript", "ncnn", "pyiqa")
for name in (*pipelines, *extras):
    sys.modules[name] = None  # an import of it now fails
import trainer.export, trainer.features.__main__, trainer.loop, trainer.run
import trainer.upscale.__main__, trainer.evaluate.__main__, trainer.evaluate.metrics
import trainer.evaluate.sidebyside, trainer.evaluate.curve, trainer.evaluate.compare
import trainer.pretrain.loop
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """By its name, as pytest does with `build` unless told otherwise."""
    passed = pytestconfig.getini("norecursedirs")
    folders = {folder for file in (ROOT / "tests").rglob("test_*.py") for folder in file.parents}
    names = {folder.name for folder in folders if folder.is_relative_to(ROOT / "tests")}
    assert "build" in names
    assert not [name for name in names for glob in passed if fnmatch.fnmatch(name, glob)]
