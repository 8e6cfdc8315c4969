"""Windows and macOS: no call that they lack, names that they forbid, Apple's GPUs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lasr.device import device_name, pick_device, pick_precision
from lasr.errors import UserError
from lasr.ownership import check_folder
from lasr.system import calls, names
from tests.support import without_posix
from tests.system.test_structure import FILES, ROOT, imports

CALLS = {f"os.{name}" for name in without_posix.OS} | {
    f"signal.{name}" for name in without_posix.SIGNAL
}


def places() -> dict[str, Path]:
    """The modules that may not call what one of the systems lacks."""
    return {name: path for name, path in FILES.items() if not name.startswith("lasr.system")}


def test_no_module_names_what_windows_lacks() -> None:
    for path in places().values():
        lacking = {name.split(".")[0] for name in imports(path)} & without_posix.MODULES
        assert not lacking, f"{path} imports {lacking}: put it into lasr/system/calls.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in CALLS, f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_text_files_name_their_encoding() -> None:
    """Windows has another default, and writes CRLF where it is not told."""
    for path in places().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            named = {keyword.arg for keyword in node.keywords}
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
            where = f"{path}:{node.lineno}: {ast.unparse(node)}"
            if name == "open" and "b" not in mode:
                assert "encoding" in named, where
                assert "newline" in named or "r" in mode, where
            if name.endswith(".read_text"):
                assert node.args or "encoding" in named, where
            assert not name.endswith(".write_text"), f"{where}: write bytes"


@pytest.mark.slow
def test_a_build_a_run_and_a_picture_without_posix(photographs: Path, tmp_path: Path) -> None:
    """See tests/support/without_posix.py."""
    script = [sys.executable, without_posix.__file__, str(tmp_path), str(photographs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert int(lines[0].split()[0]) > 150
    assert 'next: lasr compare --manifest "p q/patches.parquet"' in done.stdout  # Windows' quotes
    assert lines[-3:] == ["image_path", "astronaut.png", "chelsea.png"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("a.jpg", True), ("été 写.png", True), (".hidden", True), ("console.png", True),
        ("a:b.jpg", False), ("what?.png", False), ("con", False), ("NUL.tar.gz", False),
        ("com1.png", False), ("end.", False), ("end ", False), ("a|b", False), ("tab\t", False),
    ],
)  # fmt: skip
def test_names_on_windows(name: str, allowed: bool) -> None:
    assert (names.forbidden(name) == "") == allowed


def test_outputs_that_a_system_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [tmp_path / "Beach.png", tmp_path / "beach.png"]
    check_folder(tmp_path, files=twins)
    assert not names.ignores_case(tmp_path)
    monkeypatch.setattr(names, "ignores_case", lambda folder: True)
    with pytest.raises(UserError, match=r"Beach\.png and .*beach\.png: differ by case alone"):
        check_folder(tmp_path, files=twins)
    check_folder(tmp_path, files=twins[:1] * 2)
    (tmp_path / "a:b").mkdir()
    check_folder(tmp_path / "a:b")
    monkeypatch.setattr(names, "os", type("os", (), {"name": "nt"}))
    with pytest.raises(UserError, match=r"--out .*a:b: Windows allows no ':' in names"):
        names.check_names([Path("x/a:b")])


def test_manifests_have_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls.as_slashes("a\\b/c") == "a\\b/c"  # a name may have one where it separates nothing
    monkeypatch.setattr(calls.os, "sep", "\\")
    assert calls.as_slashes("C:\\photos\\a.jpg") == "C:/photos/a.jpg"


def test_apples_gpu_is_chosen_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="--device mps: PyTorch sees no GPU of Apple here"):
            pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = pick_device("auto")
    assert device.type == "mps" and pick_device("mps").type == "mps"
    assert pick_device("cpu").type == "cpu" and "MPS" in device_name(device)
    assert pick_precision("auto", device, "float16") == "float32"
    with pytest.raises(UserError, match="only GPUs of NVIDIA"):
        pick_precision("tf32", device, "float16")
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
