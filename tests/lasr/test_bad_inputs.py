"""Bad arguments to every command: exit status other than 0, one line, no traceback."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest

from benchmarks.startup import MISSING
from lasr.__main__ import main as lasr
from lasr.cli import Command
from lasr.flags import without_none
from tests.lasr.test_commands import all_commands

NUMBERS = ("-1", "0", "1e400", "1" + "0" * 30, "-" + "9" * 30)
VALUES = {  # of a kind of field, those that no field of that kind can do anything with
    int: ("1.5", "nan", "inf", "0x10", "x", "", "²"),
    float: ("nan", "x", "", "0x10"),
    bool: ("maybe", ""),
    Literal: ("nope", "", "Default", "a\nb\x1b[2J"),
}
ODD = ("", "-", "a\nb\x1b[2J\u202e", "\udce9.png", "x" * 300, "/dev/null/x")
COMMANDS = all_commands()


def call(capfd: pytest.CaptureFixture[str], words: list[str]) -> tuple[int, str]:
    """The exit status and the line of an error, checked: one line of printable characters."""
    status = lasr(words)
    out, error = capfd.readouterr()
    lines = [line for line in error.splitlines() if "random weights, for tests" not in line]
    text = f"{words}\n{out}\n{error}"
    assert "Traceback" not in text and "run again with --debug" not in text, text
    assert len(lines) <= 2, text
    assert all(character.isprintable() for line in lines for character in line), text
    if status:
        assert lines and lines[-1].startswith("error: "), text
    return status, lines[-1] if lines else ""


def base(command: Command[Any]) -> list[str]:
    """Words that name an input which does not exist."""
    words = command.name.split()[1:]
    return (
        [*words, *MISSING[words[0]].split()] if words[0] in MISSING and len(words) == 1 else words
    )


def bad_values(command: Command[Any]) -> Iterator[tuple[str, str, bool]]:
    """A flag, a value, and whether the flag must be blamed for it.

    The first flag of a kind is tried with everything, the others with what is cheap to confuse.
    """
    seen = set()
    for name, field in command.model.model_fields.items():
        kind = without_none(field.annotation)
        if command.flags.is_positional(name):
            continue
        flag = command.flags.label(name)
        known = Literal if get_origin(kind) is Literal else kind
        wrong = VALUES.get(known, ())
        odd = NUMBERS if kind in (int, float) else ODD if kind is not bool else ()
        some = slice(1 if str(kind) in seen else None)
        seen.add(str(kind))
        yield from ((flag, value, True) for value in wrong[some])
        yield from ((flag, value, False) for value in odd[some])


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_values(command: Command[Any], empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With an input that is not there, so that nothing starts where a value is accepted."""
    words = base(command)
    if words[0] in ("weights", "metrics", "doctor", "completion"):
        return  # their flags are tried below
    for flag, value, blamed in bad_values(command):
        status, line = call(capfd, [*words, f"{flag}={value}"])
        assert status, (flag, value)
        if blamed:
            assert status == 2 and flag in line, (flag, value, line)
    for word in ("--no-such", "-z", "--", "--=", "---", "--3", "\x1b[2J"):
        status, line = call(capfd, [*words, word])
        assert status, word
    assert not [path for path in empty.iterdir() if path.name != "weights"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_misspelt_flags_name_themselves(
    command: Command[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in command.model.model_fields:
        flag = command.flags.label(name)
        if command.flags.is_positional(name) or len(flag) < 6:
            continue
        for wrong in (flag + flag[-1], flag[:-1]):
            status, line = call(capfd, [*base(command), wrong, "x"])
            assert status == 2 and f"unknown flag {wrong}; " in line, line
            assert "did you mean --" in line, line


def kinds(folder: Path, photographs: Path) -> dict[str, Path]:
    """Paths that are not what a command asks for."""
    (folder / "file.txt").write_text("this is text\n")
    (folder / "void").touch()
    (folder / "folder").mkdir()
    (folder / "noise.pth").write_bytes(bytes(range(256)) * 8)
    (folder / "loop").symlink_to("loop")
    (folder / "cut.parquet").write_bytes(b"PAR1" + bytes(40))
    (folder / "list.json").write_text("[]")
    shutil.copy(photographs / "coffee.png", folder / "picture.png")
    long = folder / ("x" * 300)
    return {path.name: path for path in folder.iterdir()} | {
        "missing": folder / "missing",
        "too long": long,
        "deeper than a file": folder / "void" / "x",
        "odd name": folder / "a\nb\x1b[2J\u202e\udce9",
        "/dev/null": Path("/dev/null"),
        "/proc": Path("/proc/self/nothing"),
    }


NEW = {"missing", "folder", "odd name"}  # where something can be written
# A file that is named counts as a picture, and says later that it is none.
NAMED = {"picture.png", "loop", "list.json", "noise.pth", "cut.parquet", "void"}
# Words with X for the path under trial, and the kinds that are right for it.
INPUTS = {
    "build --profile test --images X --dry-run": NAMED | {"/dev/null"},
    "build --profile test --images PHOTOS --dictionary X": set(),
    "build --images PHOTOS --clip tiny-clip --depth X": set(),
    "build --profile test --images PHOTOS --dry-run --out X": NEW,
    "build --profile test --images PHOTOS --dry-run --out X/y": NEW,
    "query SELECT_1 --manifest X": set(),
    "query SELECT_1 --manifest MANIFEST --format csv --out X/y": NEW,
    "query FROM_patches --manifest MANIFEST --save X": set(),
    "report --manifest X": set(),
    "ui --manifest X": set(),
    "report --manifest MANIFEST --photographs 0 --pairs 0 --out X": {"missing", "odd name"},
    "picture --images PHOTOS --manifest X": set(),
    "depth X --profile test --out out": NAMED | {"/dev/null"},
    "depth PHOTO --profile test --out X/y": NEW,
    "depth PHOTO --profile test --out out --depth X": set(),
    "patches X --profile test --out out": NAMED | {"/dev/null"},
    "caption X --profile test --out out": NAMED | {"/dev/null"},
    "caption PHOTO --profile test --dictionary X": set(),
    "train --profile test --manifest X": set(),
    "train --profile test --manifest MANIFEST --out X --dry-run": NEW,
    "pretrain --out out --images X": set(),
    "pretrain --images PHOTOS --out X --dry-run": NEW,
    "pretrain --images PHOTOS --out out --validate-on X --longest-side 256": {"picture.png"},
    "degradations --manifest X": set(),
    "features --weights X --manifest MANIFEST": set(),
    "upscale PHOTO --weights X --out out": set(),
    "upscale X --weights bicubic --out out": set(),
    "upscale -i PHOTO --weights tiny-rrdb --dry-run -o X/y": NEW,
    "export --weights X --out out.pth": set(),
    "compare --weights bicubic --manifest X": set(),
    "compare --weights X --manifest MANIFEST": set(),
    "sidebyside X": set(),
    "curve X": set(),
    "weights verify X": set(),
    "weights fetch X": set(),
    "weights export X vgg19": set(),
    "metrics fetch X": set(),
    "doctor --profile test --program trainer --data X": {
        "missing", "folder", "odd name"
    },
}  # fmt: skip


@pytest.mark.parametrize("words", INPUTS)
def test_paths(
    words: str, photographs: Path, manifest: Path, empty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here := empty / "here").mkdir()
    names = {
        "PHOTOS": photographs, "PHOTO": photographs / "coffee.png", "MANIFEST": manifest,
        "SELECT_1": "SELECT 1", "FROM_patches": "FROM patches",
    }  # fmt: skip
    right = INPUTS[words]
    for kind, path in kinds(here, photographs).items():
        if kind in right:
            continue
        argv = [
            str(names.get(w, path if w == "X" else path / "y" if w == "X/y" else w))
            for w in words.split()
        ]
        status, line = call(capfd, argv)
        assert status, (kind, line)
