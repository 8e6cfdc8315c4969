"""Terminals of any width and pipes: progress, --quiet, colours, plurals, the next command."""

import ast
import io
import logging
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from lasr import cli
from lasr.__main__ import SECTIONS
from lasr.cli import Command, Group, Lazy
from lasr.errors import UserError
from lasr.terminal import output, summary
from lasr.terminal.progress import progress
from lasr.terminal.summary import counted, typed

# Commands that may have no next one.
LAST = {"sidebyside", "completion", "serve", "ui", "convert", "dataset", "model"}


class Dish(BaseModel):
    """Flags of a command."""

    name: str = Field("a", description="what it is called")
    dry_run: bool = Field(False, description="only say what would be done")


def command(run: Callable[[Dish], object], *argv: str, **options: Any) -> int:
    return Command(Dish, run, "lasr cook", "Cook.", **options)(argv)


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal, and what is left on it after the control codes."""

    def __init__(self, tty: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="\n", write_through=True)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    def raw(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()

    def screen(self) -> list[str]:
        """The lines as they are at the end: \\r goes to the start of a line and overwrites."""
        lines = []
        for line in self.raw().split("\n"):
            shown: list[str] = []
            for part in re.sub(r"\x1b\[\d*(;\d+)*[A-Za-z]", "", line).split("\r"):
                shown[: len(part)] = part
            lines.append("".join(shown).rstrip())
        return lines


def terminal_of(patch: pytest.MonkeyPatch, **variables: str) -> Terminal:
    """A terminal in the place of both streams. In a test: pytest sets them after fixtures."""
    stream = Terminal()
    for name in ("stdout", "stderr"):
        patch.setattr(sys, name, stream)
    patch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        patch.setenv(name, value)
    return stream


def work(_: Dish) -> None:
    """A command that shows progress, logs and prints meanwhile, and fails in the middle."""
    with progress(3, "cooked", "img") as bar:
        bar.update()
        bar.refresh()
        logging.getLogger("lasr.x").info("a line of the log")
        print("a line that is printed")
        bar.update()
        raise UserError("burnt", "cook again")


def test_lines_go_above_a_bar_which_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    assert command(work) == 1
    assert "cooked:  33%" in terminal.raw()
    lines = ["INFO: a line of the log", "a line that is printed", "error: burnt; cook again", ""]
    assert terminal.screen() == lines and not output.bars


def test_a_pipe_gets_each_count_once_and_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal(tty=False))
    with progress(6, "steps", "step") as bar:
        bar.update(6)
        bar.set_postfix_str("total=1")
    assert re.fullmatch(r"steps: 6/6 step \(.*, ETA 00:00\)(, total=1)?\n", stream.raw())


def test_fractions_count_for_the_rate_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(3, "built", "img") as bar:
        for _ in range(8):  # thirds of an item
            bar.update(1 / 3)
        text = str(bar)
        kind = type(bar)
    assert " 2/3 [" in text
    ten = kind.format_meter(1.5, 3, 15.0, unit="img")
    assert "1/3 [00:15<" in ten and "10.00s/img" in ten


@pytest.mark.parametrize("columns", [40, 80])
def test_a_bar_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl, termios, pty = map(pytest.importorskip, ("fcntl", "termios", "pty"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress(7, "photographs", "img") as bar:
            bar.update(3)
            bar.refresh()
    shown = os.read(master, 100_000).decode()
    os.close(master)
    pieces = [piece for piece in re.split(r"[\r\n]", shown) if "photographs" in piece]
    assert pieces and max(len(re.sub(r"\x1b\[\w+", "", piece)) for piece in pieces) <= columns


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_prints_errors_and_the_result_only(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Dish) -> None:
        output.note("random weights")
        logging.getLogger("lasr.x").warning("a warning")
        progress(2, "cooked", "img").update(2)
        output.say("dish: a")

    options: dict[str, Any] = {"following": lambda config: ["lasr", "eat", config.name]}
    assert command(run, flag, **options) == 0
    assert capsys.readouterr() == ("dish: a\n", "")
    assert command(run, **options) == 0
    said = capsys.readouterr()
    assert said.out == "dish: a\nnext: lasr eat a\n"
    assert "random weights\nWARNING: a warning\ncooked: 2/2 img" in said.err
    assert command(work, flag) == 1
    assert capsys.readouterr().err == "error: burnt; cook again\n"


@pytest.mark.parametrize("flag", [None, "--verbose", "-v", "--quiet"])
def test_what_libraries_say(flag: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Prefect's loggers have a level of their own, below that of warnings."""
    library = logging.getLogger("some_library.flow_runs")
    library.setLevel(logging.INFO)

    def run(_: Dish) -> None:
        library.info("Beginning flow run")
        library.info("7 photographs", extra={"ours": True})
        library.warning("retry")

    assert command(run, *([flag] if flag else [])) == 0
    lines = capsys.readouterr().err.splitlines()
    all_lines = ["INFO: Beginning flow run", "INFO: 7 photographs", "WARNING: retry"]
    assert lines == {None: all_lines[1:], "--quiet": []}.get(flag, all_lines)


@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals_that_want_them(
    variables: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_of(monkeypatch, **variables)
    assert command(work) == 1
    assert ("\x1b[1;31merror:\x1b[0m burnt" in terminal.raw()) == coloured
    assert ("\x1b[1" in terminal.raw()) == coloured and "burnt" in terminal.raw()


def test_a_dry_run_names_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(lambda config: None, "--dry-run", "--name", "a b") == 0
    assert capsys.readouterr().out == "next: lasr cook --name 'a b'\n"


def test_one_of_many_processes_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert command(lambda config: None, following=lambda config: ["lasr", "eat"]) == 0
    assert capsys.readouterr().out == ""


def test_the_weights_folder_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", "")
    for following, expected in (("train", f" --weights-dir {tmp_path}"), ("report", "")):
        words = ["lasr", following]
        options: dict[str, Any] = {"weights": True, "following": lambda config, w=words: w}
        assert command(lambda config: None, "--weights-dir", str(tmp_path), **options) == 0
        assert capsys.readouterr().out == f"next: lasr {following}{expected}\n"


def test_numbers_with_their_nouns() -> None:
    nouns = ["photograph", "patch", "entry", "day", "defective file", "process", "box"]
    assert [counted(1, noun) for noun in nouns] == [f"1 {noun}" for noun in nouns]
    plurals = ["photographs", "patches", "entries", "days", "defective_files", "processes", "boxes"]
    assert [counted(0, noun) for noun in nouns] == [f"0 {p.replace('_', ' ')}" for p in plurals]
    assert counted(2, "photograph, unused", "photographs, unused") == "2 photographs, unused"


def test_commands_are_quoted_for_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["lasr", "report", "--manifest", Path("a b/é'.parquet")]
    assert shlex.split(typed(words)) == [str(word) for word in words]
    monkeypatch.setattr(summary, "os", type("os", (), {"name": "nt"}))
    assert typed(words) == 'lasr report --manifest "a b/é\'.parquet"'


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash reads them back")
@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[31mred", "tab\t'\\", "a\u2028b é", os.fsdecode(b"caf\xe9 x"), "plain 'x"]
)
def test_bash_reads_a_typed_name_back(name: str) -> None:
    line = typed(["printf", "%s", name])
    assert "\n" not in line and not any(ord(c) < 32 for c in line)
    told = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert os.fsdecode(told) == name


def every_command() -> list[Command[Any]]:
    found: list[Command[Any]] = []
    pending: list[Any] = [each for section in SECTIONS.values() for each in section]
    while pending:
        each = pending.pop()
        loaded = each.load() if isinstance(each, Lazy) else each
        if isinstance(loaded, Group):
            pending += loaded.commands.values()
        else:
            found.append(loaded)
    return found


@pytest.mark.parametrize("each", every_command(), ids=lambda each: each.name)
def test_every_command_names_the_next_one(each: Command[Any]) -> None:
    assert each.following or each.name.split()[-1] in LAST


# What the next commands are made of: a configuration, and the words that come of it.
NEXT = {
    "build": ("--images a --out 'my data/p.parquet'",
              "report --manifest 'my data/p.parquet' --out 'my data/p.html'"),
    "finetune-set": ("--lr-images a --out p.parquet --profile offline",
                     "train --manifest p.parquet --profile offline"),
    "query": ("'SELECT 1' --save s.parquet", "train --manifest s.parquet"),
    "picture": ("--images a --manifest p", "report --manifest p"),
    "train": ("--manifest p --out 'r 1'",
              "compare --manifest p --weights 'r 1' --out 'r 1/compare.png'"),
    "pretrain": ("--images a --out r", "train --manifest data/patches.parquet --sr-init"
                 " r/model_ema.safetensors"),
    "degradations": ("--manifest p", "train --manifest p --degrade realesrgan"),
    "features": ("--weights r --manifest p", "compare --manifest p --weights r"),
    "evaluate": ("--images a --weights bicubic --out e", "sidebyside e"),
    "compare": ("--weights mine=r", "upscale --weights r PICTURE --out data/upscaled"),
    "upscale": (". --weights w.pth --out up", "evaluate --images . --weights bicubic w.pth"),
    "export": ("--weights w.pth --out x.onnx", "upscale --weights w.pth PICTURE --out"
               " data/upscaled"),
    "doctor": ("--profile offline", "build --images PHOTOGRAPHS --profile offline"),
    "curve": ("e", "sidebyside e"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEXT)
def test_the_next_command_can_be_typed(name: str) -> None:
    """Its words are those expected, and the command that they name takes them."""
    by_name = {each.name.split()[-1]: each for each in every_command()}
    typed_now, expected = NEXT[name]
    config, _ = by_name[name].flags.parse(shlex.split(typed_now))
    assert by_name[name].following
    line = typed(by_name[name].following(config))
    assert line == f"lasr {expected}"
    _, following, *argv = shlex.split(line)
    by_name[following].flags.parse(argv)


# Numbers that are never one, or no numbers.
PLURAL = {
    "2 * config.k", "processes", "world_size", "len(files)", "ROLES[row['role']]", "SCALE", "rows",
}  # fmt: skip


def test_no_number_stands_beside_a_plural() -> None:
    """`{len(rows)} rows` is wrong for one row: `counted` knows the singular."""
    nouns = "photographs|pictures|patches|files|parts|rows|checks|processes|methods|networks|steps"
    wrong = []
    for package in ("lasr", "pipeline", "trainer", "schemas"):
        for path in (Path(cli.__file__).parents[1] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    wrong += [f"{path}: {text}" for text in beside_plurals(node, nouns)]
    assert not wrong, "\n".join(wrong)


def beside_plurals(text: ast.JoinedStr, nouns: str) -> Iterator[str]:
    before = ""
    for number, noun in pairwise(text.values):
        if isinstance(number, ast.FormattedValue) and isinstance(noun, ast.Constant):
            value, is_part = ast.unparse(number.value), before.endswith(("of ", "of its "))
            if re.match(rf" ({nouns})\b", str(noun.value)) and not is_part and value not in PLURAL:
                yield f"{value}{noun.value}"
        before = str(number.value) if isinstance(number, ast.Constant) else ""
