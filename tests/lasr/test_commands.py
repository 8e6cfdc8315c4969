"""Every command: its help, what it imports, and mistakes answered by one line."""

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from runpy import run_module
from typing import Any

import pytest
import torch

import lasr.doctor.__main__
import lasr.weights.__main__
import pipeline.report.picture
import pipeline.run
import trainer.run
from benchmarks.startup import MISSING
from lasr.__main__ import SECTIONS
from lasr.cli import Command, Group, Lazy

ROOT = Path(__file__).parents[2]
COMMANDS = {c.name: c for section in SECTIONS.values() for c in section}
HEAVY = (
    "torch", "diffusers", "transformers", "clip_interrogator", "prefect", "duckdb", "open_clip",
    "matplotlib", "onnxruntime", "pyiqa", "sklearn",
)  # fmt: skip
# Imports the module of every command in a new process, says what heavy modules that loaded, and
# runs `lasr` in forks of that process as often as asked: each call starts as light as alone.
PROBE = f"""
import importlib, json, os, sys, tempfile
from pathlib import Path
from lasr.__main__ import SECTIONS, main

def heavy():
    return [name for name in {HEAVY!r} if name in sys.modules]

def call(argv):
    folder = Path(tempfile.mkdtemp(dir="."))
    if os.fork() == 0:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"../{{folder.name}}.{{name}}", os.O_WRONLY | os.O_CREAT), number)
        status = main(argv)
        sys.stdout.flush(), sys.stderr.flush()
        report = [status, heavy(), sorted(os.listdir())]
        Path(f"../{{folder.name}}.report").write_text(json.dumps(report))
        os._exit(0)
    assert os.wait()[1] == 0, argv
    report = json.loads(Path(f"{{folder.name}}.report").read_text())
    return [*report, Path(f"{{folder.name}}.err").read_text()]

commands = [command for section in SECTIONS.values() for command in section]
loaded = {{}}
for command in commands:
    importlib.import_module(command.module)
    loaded[command.name] = heavy()
print(json.dumps([loaded, [call(argv) for argv in json.load(sys.stdin)]]))
"""
TAKE_WEIGHTS = {
    "build", "finetune-set", "depth", "patches", "caption", "train", "pretrain", "upscale",
    "evaluate", "compare", "features", "export", "ui",
}  # fmt: skip


def all_commands() -> list[Command[Any]]:
    """Every command, those of groups such as `lasr weights` included."""
    found: list[Command[Any]] = []
    groups = [Group("lasr", "", SECTIONS)]
    while groups:
        for command in groups.pop().commands.values():
            loaded = command.load() if isinstance(command, Lazy) else command
            if isinstance(loaded, Group):
                groups.append(loaded)
            else:
                found.append(loaded)
    return found


@dataclass
class Answer:
    """What a call of `lasr` did."""

    status: int
    loaded: list[str]  # heavy modules
    files: list[str]  # in its folder, which was empty
    error: str  # standard error


Probed = tuple[dict[str, list[str]], dict[tuple[str, ...], Answer]]


def calls(name: str) -> dict[str, tuple[str, ...]]:
    """A command's help, an unknown flag, and an input that is not there if it has inputs."""
    missing = {"missing": (name, *MISSING[name].split())} if MISSING[name] else {}
    return {"help": (name, "--help"), "flag": (name, "--no-such-flag")} | missing


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """Heavy modules that each command's module imports, and the answers to `calls`."""
    folder = tmp_path_factory.mktemp("probe")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    argvs = [argv for name in COMMANDS for argv in calls(name).values()]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=folder, env=environment, capture_output=True, text=True, input=json.dumps(argvs),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded, answers = json.loads(done.stdout)
    return loaded, {argv: Answer(*each) for argv, each in zip(argvs, answers, strict=True)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_a_missing_input_load_nothing_heavy(name: str, probed: Probed) -> None:
    loaded, answers = probed
    assert loaded[name] == []
    found = {kind: answers[argv] for kind, argv in calls(name).items()}
    assert (found["help"].status, found["help"].loaded) == (0, [])
    assert (found["flag"].status, found["flag"].loaded) == (2, [])
    assert found["flag"].error.count("\n") == 1
    if "missing" in found:
        missing = found["missing"]
        assert missing.status in (1, 2) and missing.loaded == [], missing.error
        last = missing.error.splitlines()[-1]
        assert last.startswith("error: ") and "nowhere" in last, missing.error
        assert missing.files == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_command_is_a_module_too(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m` finds the module's or package's `__main__`, which runs the command."""
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])
    with (
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # it is imported already
        pytest.raises(SystemExit) as ended,
    ):
        run_module(COMMANDS[name].module.removesuffix(".__main__"), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"Usage: lasr {name} ")


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: command.name)
def test_help_explains_every_flag(
    command: Command[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["--help"]) == 0
    short = capsys.readouterr().out
    assert command(["--help-all"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: {command.name} ") and (command.about or "").strip() in text
    takes_weights = command.name.split()[1] in TAKE_WEIGHTS | {"weights", "metrics"}
    takes_weights &= command.name != "lasr weights make"  # it reads packages alone
    assert ("--weights-dir DIR" in text) == takes_weights
    assert max(map(len, text.splitlines())) <= 100 and "\x1b" not in text
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  --"):  # its help is on this line or the next
            explained = line.split("  ", 2)[-1].strip() or lines[number + 1]
            assert len(explained.split()) > 1, line
    fields = command.model.model_fields
    hidden = [name for names in command.flags.sections.values() for name in names]
    assert set(hidden) <= fields.keys() and len(set(hidden)) == len(hidden)
    for name, field in fields.items():
        label = command.flags.label(name)
        assert f"  {label}" in text and (f"\n  {label}" in short) == (name not in hidden)
        assert field.description, name
    assert len(fields) - len(hidden) <= 12, "a newcomer sees about ten options"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LASR_WEIGHTS", "")  # so that what --weights-dir sets goes at the end
    monkeypatch.delenv("LASR_WEIGHTS")
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str], status: int) -> str:
    error = capsys.readouterr().err.splitlines()
    assert status == 1 and error[-1].startswith("error: "), error
    return error[-1]


def test_missing_weights_are_named_with_the_command_that_fetches_them(
    empty: Path, photographs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = one_line(capsys, pipeline.run.main(["--images", str(photographs)]))
    assert "'depth-anything-v2-small' (99 MB, licence Apache-2.0), " in line
    assert "'clip-vit-l-14' (1711 MB, licence MIT)" in line  # all that is missing at once
    assert "`lasr weights fetch depth-anything-v2-small clip-vit-l-14`" in line
    for more in ([], ["--dry-run"]):
        status = trainer.run.main(["--manifest", str(manifest), *more])
        line = one_line(capsys, status)
        assert "`lasr weights fetch rrdb-psnr-x4 clip-vit-l-14 vgg19`" in line
    argv = ["--images", str(photographs), "--profile", "paper", "--weights-dir", "elsewhere"]
    line = one_line(capsys, pipeline.run.main(argv))
    missing = "depthfm-v1 clip-vit-l-14 sd15-vae"
    assert f"`lasr weights fetch {missing} --weights-dir elsewhere`" in line


def test_mistakes_of_the_pipeline(
    empty: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offline = ["--profile", "test"]
    for argv, message in [
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--images", str(photographs), "--dictionary", "no.txt"], "no.txt: the dictionary"),
        (["--images", str(photographs), "--depth", "guess"], "guess: neither a file or folder"),
        (
            ["--images", str(photographs), "--clip", "vgg19"],
            "these are vgg weights, not clip weights",
        ),
    ]:
        assert message in one_line(capsys, pipeline.run.main([*argv, *offline]))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://", "without a bucket"), ("s3:///x", "without a bucket"),
        ("gs://", "without a bucket"), ("memory:///", "without a bucket"),
        ("hf://x", "without a repository"), ("hf://datasets/x", "without a repository"),
    ],
)  # fmt: skip
def test_addresses_that_name_nothing(
    address: str, said: str, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = pipeline.run.main(["--images", address, "--profile", "test", "--dry-run"])
    assert f"an address {said}" in one_line(capsys, status)
    status = trainer.run.main(["--manifest", address, "--profile", "test", "--batch-size", "2"])
    assert f"an address {said}" in one_line(capsys, status)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_asked_for_in_vain(
    empty: Path, photographs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = ["--profile", "test", "--device", "cuda"]
    status = pipeline.run.main(["--images", str(photographs), *cuda])
    assert "--device cuda: PyTorch sees no GPU here" in one_line(capsys, status)
    status = trainer.run.main(["--manifest", str(manifest), *cuda])
    assert "--device cuda: PyTorch sees no GPU here" in one_line(capsys, status)


def test_mistakes_of_the_trainer(
    empty: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = empty / "broken.pth"
    broken.write_bytes(b"nothing")
    for argv, message in [
        (["--manifest", "nowhere.parquet"], "nowhere.parquet: no manifest there; build one with"),
        (["--manifest", str(manifest), "--sr-init", str(broken)], "broken.pth: cannot be read"),
        (["--manifest", str(manifest), "--vgg", str(broken)], "broken.pth: cannot be read"),
        (["--manifest", str(manifest), "--vgg-layers", "conv9_9"], "no layer conv9_9"),
    ]:
        status = trainer.run.main([*argv, "--profile", "test", "--batch-size", "2"])
        assert message in one_line(capsys, status)


def test_dry_runs_say_what_would_be_done_and_do_nothing(
    empty: Path, photographs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--images", str(photographs), "--profile", "test", "--dry-run"]
    assert pipeline.run.main(argv) == 0
    text = capsys.readouterr().out
    assert "7 photographs, 0 finished, 7 to do in 1 part\n" in text and "1000 words" in text
    argv = ["--manifest", str(manifest), "--profile", "test", "--batch-size", "2", "--dry-run"]
    assert trainer.run.main(argv) == 0
    text = capsys.readouterr().out
    assert "28 lr and" in text and "tiny-clip@built-in" in text
    assert list(empty.iterdir()) == []


def test_weights_list_and_unknown_names(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = lasr.weights.__main__.main
    assert command(["list"]) == 0
    text = capsys.readouterr().out
    assert "CC-BY-NC-4.0 *" in text and "* not for commercial use" in text and "3,464 MB" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "no such weights or profile" in one_line(capsys, command(["fetch", "x"]))


def test_the_overview_picture(
    manifest: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    out = tmp_path / "overview.png"
    argv = ["--manifest", str(manifest), "--images", str(photographs), "--out", str(out)]
    assert pipeline.report.picture.main([*argv, "--photograph", "china.jpg"]) == 0
    assert Image.open(out).size == (1600, 880)
    jpeg = tmp_path / "overview.jpg"
    assert pipeline.report.picture.main([*argv, "--out", str(jpeg)]) == 0
    assert Image.open(jpeg).format == "JPEG"
    bad = [*argv, "--out", str(tmp_path / "overview.txt")]
    assert "use one that ends in" in one_line(capsys, pipeline.report.picture.main(bad))
    assert "no photograph 'x.jpg'" in one_line(
        capsys, pipeline.report.picture.main([*argv, "--photograph", "x.jpg"])
    )
