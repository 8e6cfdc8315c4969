"""The notebook docs/tour.ipynb: it runs as it is written, and what it stores is what it shows."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs/tour.ipynb"
CELLS = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
SMALL = {"PHOTOGRAPHS": 2, "K": 2, "STEPS": 1, "BATCH": 2}  # in place of the notebook's own


def run(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell as Jupyter does; returns the value of its last expression, which is shown."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(FILE), "exec"), names)
    if last is None:
        return None
    assert isinstance(last, ast.Expr)
    return eval(compile(ast.Expression(last.value), str(FILE), "eval"), names)


def test_every_cell_runs_and_the_way_ends_with_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = []
    for number, source in enumerate(CODE):
        shown.append(run(source, names))
        if number == 0:
            assert names.keys() >= SMALL.keys()
            names |= SMALL
    pictures = [value for value in shown if value is not None]
    assert len(pictures) == 4 and all(isinstance(each, Image.Image) for each in pictures)
    said = capsys.readouterr().out
    assert "{'ok': 2} {'lr': 4, 'hr': 4}" in said
    losses = re.findall(r"step (\d): total loss (\S+)", said)
    assert [step for step, _ in losses] == ["1"] and float(losses[0][1]) > 0
    assert "(56, 56) -> (224, 224)" in said and pictures[-1].size == (3 * 224 + 12, 224)
    assert "sharpness" in said
    for name in ("patches.parquet", "overview.jpg", "run/model.safetensors"):
        assert (tmp_path / "tour" / name).exists(), name
    assert [path.name for path in tmp_path.iterdir()] == ["tour"]


def test_it_is_stored_small_and_as_it_ran() -> None:
    assert FILE.stat().st_size < 300_000
    counts = [cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    text = json.dumps(outputs)
    assert "Traceback" not in text
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 4
    for link in re.findall(r"\]\(([^)#]+)\)", FILE.read_text(encoding="utf-8")):
        assert (FILE.parent / link).exists(), link
