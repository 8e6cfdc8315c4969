"""Flags from a model, groups of commands, errors on one line, and shell completion."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, Field, model_validator

import lasr
from lasr import cli, errors
from lasr import help as pages
from lasr.__main__ import main as program
from lasr.cli import STOPPED, Command, Group, Lazy
from lasr.errors import UserError, note_traceback, one_line, printable
from lasr.flags import Flags, NoFlags, Sections, UsageError

ROOT = Path(__file__).parents[2]


class Dish(BaseModel):
    """Flags of each kind."""

    SECTIONS: ClassVar[Sections] = {"Taste": ("salt", "herbs")}

    plates: list[str] = Field(min_length=1, description="where it goes")
    name: str | None = Field(None, description="what it is called")
    size: Literal["small", "large"] = Field("small", description="how much")
    portions: int | None = Field(None, ge=1, description="for how many")
    weight: float = Field(0.5, ge=0, le=1, description="in kilograms")
    out: Path = Field(Path("kitchen"), description="where it is cooked")
    herbs: list[str] = Field(["dill"], description="what is added")
    salt: bool = Field(False, description="add salt")

    @model_validator(mode="after")
    def _fits(self) -> "Dish":
        if self.salt and self.size == "large":
            raise ValueError("--salt: a large dish has salt already")
        return self


ABOUT = """Cook a dish.

    lasr cook --plates a b          # two plates
    lasr cook --plates a --salt
"""


def cook(*argv: str, **options: Any) -> tuple[int, list[Dish]]:
    """The exit status, and what the command was run with."""
    cooked: list[Dish] = []
    return Command(Dish, cooked.append, "lasr cook", ABOUT, **options)(argv), cooked


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--plates a b", {"plates": ["a", "b"]}),
        ("--plates=a --plates b c", {"plates": ["a", "b", "c"]}),
        ("--salt --plates a --name x=y", {"salt": True, "name": "x=y"}),
        ("--plates a --name none", {"name": "none"}),
        ("--plates a --size large --portions 3", {"size": "large", "portions": 3}),
        ("--plates a --portions 3 --portions 4", {"portions": 4}),  # the last one counts
        ("--plates a --weight 1e-3 --out b/c", {"weight": 0.001, "out": Path("b/c")}),
        ("--plates a --herbs x y --debug", {"herbs": ["x", "y"]}),
    ],
)
def test_flags_become_the_model(argv: str, expected: dict[str, Any]) -> None:
    status, (dish,) = cook(*argv.split())
    plates = expected.get("plates", ["a"])
    assert status == 0 and dish == Dish(**{"plates": plates} | expected)
    assert dish.model_fields_set == {"plates", *expected}


class Short(BaseModel):
    """A command with short flags."""

    ALIASES: ClassVar[dict[str, str]] = {"inputs": "-i", "out": "-o"}

    inputs: list[str] = Field(description="what is read")
    out: str = Field("", description="where it goes")
    fast: bool = Field(False, description="whether it hurries")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("-i a b -o c", {"inputs": ["a", "b"], "out": "c"}),
        ("-o=c -i=a", {"inputs": ["a"], "out": "c"}),
        ("a --fast -i b --out c", {"inputs": ["a", "b"], "out": "c", "fast": True}),
        ("a --out c --fast -i b d", {"inputs": ["a", "b", "d"], "out": "c", "fast": True}),
        ("-o c -i a -o d -i b", {"inputs": ["a", "b"], "out": "d"}),
        ("-o c -- -i", {"inputs": ["-i"], "out": "c"}),
    ],
)
def test_short_flags(argv: str, expected: dict[str, Any]) -> None:
    flags = Flags(Short, "lasr short", positional="inputs")
    assert flags.parse(argv.split())[0].model_dump(exclude_unset=True) == expected
    text = pages.page(flags)
    assert "\n  INPUTS..., -i " in text and "\n  --out OUT, -o " in text


@pytest.mark.parametrize(("argv", "message"), [
    ("-i a -o", "--out needs a value"), ("-o c", "INPUTS is required"),
    ("-oc", "unknown flag -oc"), ("-x a", "unknown flag -x"),
])  # fmt: skip
def test_mistakes_with_short_flags(argv: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Flags(Short, "lasr short", positional="inputs").parse(argv.split())


def test_fields_without_a_flag() -> None:
    for argv in (["a", "b", "--salt"], ["--salt", "a", "b"], ["--salt", "--", "a", "b"]):
        assert cook(*argv, positional="plates")[1][0].plates == ["a", "b"]
    argv = ["x", "--", "--a", "-b"]
    assert cook(*argv, positional="name plates") == (0, [Dish(name="x", plates=["--a", "-b"])])
    text = "-- a comment\nSELECT 1"  # a value with white space is no flag
    assert cook(text, positional="plates")[1][0].plates == [text]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--platess a", "unknown flag --platess; did you mean --plates?"),
        ("--plate a", "unknown flag --plate; did you mean --plates?"),  # no abbreviations
        ("--plates a --no-salt", "unknown flag --no-salt; did you mean --salt?"),
        ("--plates a --qqq", "unknown flag --qqq; see `lasr cook --help`"),
        ("--plates a -s", "unknown flag -s; see `lasr cook --help`"),
        ("--plates a --weights-dir b", "unknown flag --weights-dir; did you mean --weight?"),
        ("--salt", "--plates is required; see `lasr cook --help`"),
        ("--plates --salt", "--plates needs a value; see"),
        ("--plates a --name", "--name needs a value; see"),
        ("--plates a --size huge", "--size huge: choose from small, large; see"),
        ("--plates a --salt=maybe", "--salt maybe: choose from true, false; see"),
        (
            "--plates a --portions 0",
            "--portions 0: input should be greater than or equal to 1; see",
        ),
        ("--plates a --portions 1.5", "--portions 1.5: input should be a valid integer"),
        ("--plates a --portions none", "--portions none: input should be a valid integer"),
        ("--plates a --weight heavy", "--weight heavy: input should be a valid number"),
        ("--plates a --salt --size large", "--salt: a large dish has salt already; see"),
        ("a --plates b", "unexpected argument 'a'; see"),
    ],
)
def test_mistakes_are_one_line(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cook(*argv.split()) == (2, [])
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_an_empty_path_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--out", ""], ["--out="], ["--config", ""], ["--weights-dir="]):
        status, cooked = cook("--plates", "a", *argv, configurable=True, weights=True)
        flag = argv[0].rstrip("=")
        assert (status, cooked) == (2, [])
        assert f"error: {flag} '': an empty path; see" in capsys.readouterr().err
    assert cook("--plates", "a", "--out", ".")[1][0].out == Path()


class Numbers(BaseModel):
    """Numbers without limits of their own."""

    seed: int = 0
    rate: float = 1.0
    sizes: list[float] = []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (f"--seed {2**53 + 1}", f"--seed {2**53 + 1}: more than {2**53} (2^53); see"),
        (f"--seed -{10**26}", f"--seed -{10**26}: more than"),
        ("--rate inf", "--rate inf: not a finite number; see `lasr count --help`"),
        ("--rate=-inf", "--rate -inf: not a finite number"),
        ("--rate nan", "--rate nan: not a finite number"),
        ("--rate 1e999", "--rate inf: not a finite number"),
        ("--sizes 1 inf", "--sizes inf: not a finite number"),
    ],
)
def test_numbers_that_cannot_be_computed_with_are_mistakes(
    argv: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = Command(Numbers, lambda numbers: None, "lasr count", "Count.", configurable=True)
    assert count(argv.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    (tmp_path / "a.toml").write_text("rate = inf")
    assert count(["--config", str(tmp_path / "a.toml")]) == 2
    assert "--rate inf: not a finite number" in capsys.readouterr().err
    assert count(["--seed", str(2**53), "--rate", "1e300"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 1, "seed": 2}', "seed is given twice; remove one of them"),
        ("some-sizes = [1]\nsome_sizes = [2]", "some_sizes is given twice"),
        ("seed = true", "seed = true: not a value of --seed; see `lasr count --help-all`"),
        ('{"seed": ' + "[" * 100_000, "neither TOML nor JSON"),
        (f"{'k' * 1000} = 1", f"unknown option {'k' * 100}; see"),
    ],
)
def test_mistakes_in_a_file_of_options(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.toml").write_text(text)
    count = Command(Numbers, lambda numbers: None, "lasr count", "Count.", configurable=True)
    assert count(["--config", str(tmp_path / "a.toml")]) == 2
    error = capsys.readouterr().err
    assert f"a.toml: {message}" in error and error.count("\n") == 1


def test_weights_dir_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", "before")
    assert cook("--plates", "a", "--weights-dir", "there", weights=True)[0] == 0
    assert os.environ["LASR_WEIGHTS"] == "there"


def test_help_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cook("--help", "--no-such-flag") == (0, [])
    assert (
        capsys.readouterr().out
        == """\
Usage: lasr cook --plates PLATES... [options]

Cook a dish.

    lasr cook --plates a b          # two plates
    lasr cook --plates a --salt

Options:
  --plates PLATES...      where it goes (required)
  --name NAME             what it is called
  --size SIZE             how much [small | large] (default: small)
  --portions N            for how many
  --weight X              in kilograms (default: 0.5)
  --out PATH              where it is cooked (default: kitchen)

Common:
  --quiet                 print errors and the result only
  --verbose               log what libraries say, too, such as Prefect
  --debug                 log more, and show the traceback of an error (or set LASR_DEBUG=1)
  --help                  show the common options
  --help-all              show all 8 options
"""
    )
    assert cook("--help-all", positional="plates") == (0, [])
    text = capsys.readouterr().out
    assert text.startswith("Usage: lasr cook PLATES... [options]\n")
    assert "Taste:\n  --salt                  add salt\n  --herbs HERBS...        what" in text
    assert "what is added (default: dill)" in text


def test_under_torchrun_one_process_prints_mistakes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cook("--salt")[0] == 2 and capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert cook("--salt")[0] == 2 and capsys.readouterr().err != ""


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_runs_the_command_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    cooked: list[Dish] = []
    group = Group(
        "lasr kitchen",
        "A kitchen.",
        {"Meals": [Command(Dish, cooked.append, "lasr kitchen cook", ABOUT)]},
    )
    assert group(["cook", "--plates", "a"]) == 0 and cooked == [Dish(plates=["a"])]
    assert group(["coook"]) == 2
    assert capsys.readouterr().err == "error: unknown command coook; did you mean cook?\n"
    assert group(["--version"]) == 2
    assert capsys.readouterr().err == "error: unknown flag --version; see `lasr kitchen --help`\n"
    for argv in ([], ["--help"]):
        assert group(argv) == 0
        text = capsys.readouterr().out
        assert text.startswith("Usage: lasr kitchen COMMAND [options]\n\nA kitchen.\n")
        assert "\nMeals:\n  cook                    Cook a dish\n" in text


def test_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["--version"]) == 0 and capsys.readouterr().out == f"lasr {lasr.__version__}\n"
    assert program(["bild"]) == 2
    assert capsys.readouterr().err == "error: unknown command bild; did you mean build?\n"
    assert program(["--help"]) == 0
    text = capsys.readouterr().out
    for title in ("Build a training set", "Train", "Use and judge", "Models and machine"):
        assert f"\n{title}:\n" in text
    names = program.commands
    assert len(names) == 26 and all(f"\n  {name} " in text for name in names)
    assert max(map(len, text.splitlines())) <= 100


# --- errors ---------------------------------------------------------------------------------------


def fails(error: BaseException) -> Command[NoFlags]:
    def run(_: NoFlags) -> None:
        raise error

    return Command(NoFlags, run, "lasr fail")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("it is wrong", "right it"), 1, "error: it is wrong; right it\n"),
        (UserError("a\x1b[31m\nb\tc\x00\u202e"), 1, "error: a\\x1b[31m b c\\x00\\u202e\n"),
        (FileNotFoundError(2, "No such file", "x\ny"), 1, "error: x y: No such file\n"),
        (
            KeyError("x"),
            1,
            "error: unexpected KeyError: 'x'; run again with --debug for the traceback, and report"
            " it\n",
        ),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to resume\n"),
    ],
)
def test_an_error_is_one_line(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(error)([]) == status and capsys.readouterr() == ("", message)


def test_ctrl_c_before_the_command_begins_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the flags are read, and while the module of a command is imported."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    line = f"{STOPPED}\n"
    monkeypatch.setattr(Flags, "parse", interrupted)
    assert fails(KeyError("x"))([]) == 130 and capsys.readouterr() == ("", line)
    monkeypatch.setattr(Lazy, "load", interrupted)
    assert program(["build"]) == 130 and capsys.readouterr() == ("", line)


@pytest.mark.parametrize("by_flag", [True, False])
def test_debug_shows_the_traceback(
    by_flag: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_flag:
        monkeypatch.setenv("LASR_DEBUG", "1")
    assert fails(KeyError("x"))(["--debug"] if by_flag else []) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and "KeyError: 'x'" in lines
    assert lines[-1].startswith("error: unexpected KeyError: 'x'; ")


def test_the_first_traceback_of_each_type_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_noted", set())
    log = logging.getLogger("lasr.test")
    with caplog.at_level(logging.DEBUG, "lasr.test"):
        for error in (KeyError(1), KeyError(2), UserError("no"), ValueError(3), ValueError(4)):
            try:
                raise error
            except Exception as raised:
                note_traceback(log, raised)
    assert [record.getMessage() for record in caplog.records] == [
        "the first KeyError:",
        "the first ValueError:",
    ]
    assert all(record.levelno == logging.DEBUG for record in caplog.records)
    assert "KeyError: 1" in caplog.text and "KeyError: 2" not in caplog.text


@pytest.mark.parametrize("debug", [True, False])
def test_the_log_is_shown_with_debug(debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run_command(lambda: logging.getLogger("pipeline.x").debug("a detail"), debug=debug)
    assert ("DEBUG: a detail" in capsys.readouterr().err) == debug


def test_text_on_one_line() -> None:
    assert one_line(ValueError("a\n  b\x07")) == "a b\\x07" and one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 500), 10) == "x" * 10
    assert printable("Größe 写真") == "Größe 写真"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m lasr build --help-all | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""


@pytest.mark.slow
def test_bitsandbytes_does_not_warn() -> None:
    pytest.importorskip("bitsandbytes")
    code = """
import sys
import pipeline.stages.depthfm
import diffusers.loaders.single_file_utils
assert "bitsandbytes" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "gemm_4bit" not in done.stdout + done.stderr, done.stderr


# --- completion -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion script of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-m", "lasr", "completion", shell],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        (folder / shell).write_text(done.stdout)
    return folder


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers at the last of the words."""
    code = f"""
source {script}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
COMP_LINE="${{COMP_WORDS[*]}}" COMP_POINT=${{#COMP_LINE}}
_lasr
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_flags_and_values(scripts: Path) -> None:
    bash = scripts / "bash"
    assert complete(bash, "lasr", "bu") == ["build"]
    assert set(complete(bash, "lasr", "ex")) == {"export"}
    assert complete(bash, "lasr", "build", "--im") == ["--images"]
    assert {"--profile", "--weights-dir", "--help-all"} <= {*complete(bash, "lasr", "train", "--")}
    assert complete(bash, "lasr", "build", "--strategy", "in") == ["inclusion"]
    assert complete(bash, "lasr", "weights", "fe") == ["fetch"]
    assert complete(bash, "lasr", "completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_valid_and_knows_every_command(shell: str, scripts: Path) -> None:
    text = (scripts / shell).read_text()
    assert all(name in text for name in program.commands) and "images" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(scripts / shell)], check=True)
