"""Text that users write, in any encoding, and text on any terminal."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lasr import files
from lasr.cli import Command, run_command
from lasr.errors import UserError, is_out_of_memory
from lasr.files import atomic_path, read_text, replace_folder, write_bytes
from lasr.flags import NoFlags
from lasr.pictures.search import expand_lists
from lasr.terminal import output
from lasr.terminal.progress import progress
from pipeline.stages.captions import DICTIONARY, read_dictionary

ROOT = Path(__file__).parents[2]
TEXT = "été\n写真 ☀\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_unicode_encoding_is_read(encoding: str, newline: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""  # "utf-16" writes its own
    (tmp_path / "a").write_bytes((mark + TEXT.replace("\n", newline)).encode(encoding))
    assert read_text(tmp_path / "a") == TEXT


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"fine\nalso \xe9t\xe9\n", "line 2, byte 11 of the file (0xe9) is not UTF-8"),
        ("été\n".encode("cp437"), "line 1, byte 1 of the file (0x82) is not UTF-8"),
        ("写真".encode("shift-jis"), "line 1, byte 1 of the file (0x8e) is not UTF-8"),
        ("a\nb".encode("utf-16-le"), "line 1, byte 2 of the file (0x00) is not text"),
        (b"\xff\xfea\0\n\0b", "line 2, byte 7 of the file (0x62) is not UTF-16"),
        (b"\x89PNG\r\n\x1a\n", "line 1, byte 1 of the file (0x89) is not UTF-8"),
        (b"a\n\0", "line 2, byte 3 of the file (0x00) is not text"),
    ],
)
def test_other_encodings_are_named_with_line_and_byte(
    content: bytes, said: str, tmp_path: Path
) -> None:
    (file := tmp_path / "list.txt").write_bytes(content)
    for read in (read_text, read_dictionary, lambda path: list(expand_lists([str(path)]))):
        with pytest.raises(UserError) as raised:
            read(file)
        assert str(raised.value) == f"{file}: {said}; save it as UTF-8"


def test_a_text_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGEST_TEXT", 2**20)
    with pytest.raises(UserError, match="/dev/zero: more than 1 MiB, which is no text"):
        read_text(Path("/dev/zero"))
    (tmp_path / "words.txt").write_bytes(b"a" * 2**20)
    assert len(read_text(tmp_path / "words.txt")) == 2**20


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_and_dictionaries_of_windows(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_bytes("é.jpg\r\n\r\n b.png \r\nlist.txt\r\n".encode(encoding))
    monkeypatch.chdir(tmp_path)
    assert list(expand_lists(["list.txt"])) == ["é.jpg", "b.png"]  # it names itself
    words = read_dictionary(DICTIONARY)
    (tmp_path / "words").write_bytes("\r\n".join(words).encode(encoding))
    assert read_dictionary(tmp_path / "words") == words


# --- terminals ------------------------------------------------------------------------------------

NAME = "a\nb\x1b[2J\u202e\x9b\udce9写é"


class Output(io.TextIOWrapper):
    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp437", "shift-jis"])
def test_every_line_is_safe_in_every_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Printed, logged, warned of, and raised: names with control characters on one line each."""
    out, error = Output(encoding), Output(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)

    def command(_: NoFlags) -> None:
        output.say(f"name: {NAME}")
        logging.getLogger("lasr.x").info("%s", NAME)
        sys.stderr.write(warnings.formatwarning(UserWarning(NAME), UserWarning, "x.py", 1))
        print("\x1b[31m", "│", "✓", sep="|")
        raise UserError(NAME, "mend it")

    assert Command(NoFlags, command, "lasr fail")([]) == 1
    assert sys.stdout is out and sys.stderr is error
    texts = out.text() + error.text()
    lines = texts.splitlines()
    assert len(lines) == 5 and all(line.isprintable() for line in lines), lines
    for line in lines[:1] + lines[2:]:
        assert "a b\\x1b[2J\\u202e\\x9b\\" in line, line
        assert line.count("é") == (encoding not in ("ascii", "shift-jis"))
        assert line.count("写") == (encoding in ("utf-8", "shift-jis"))
        assert "??" in line or "写" in line
    assert lines[1].startswith("\\x1b[31m|")


def test_tables_stay_aligned() -> None:
    """A character becomes as many as it takes columns; lines become ASCII lines."""
    table = "┌──┬──┐\n│写│é │\n│a │e\u0301 │\n└──┴──┘\n"
    stream = Output("ascii")
    assert output.Safe(stream).write(table) == len(table)
    assert stream.text() == "+--+--+\n|??|? |\n|a |e |\n+--+--+\n"


POOR = """
import sys
from lasr.doctor import __main__ as doctor
from lasr.terminal.progress import progress

def check():
    progress(3, "写", "img").update(3)
    return "写é \\x1b[2J"

doctor.checks = lambda config: [("✓", check, "")]
sys.exit(doctor.main([]) or doctor.main(["--json"]))
"""


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "20"},
        {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "0"},
    ],
)
def test_poor_terminals(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "poor.py").write_text(POOR, encoding="utf-8")
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, str(tmp_path / "poor.py")]
    done = subprocess.run(command, env=variables, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert done.stdout.startswith(b"v v: ??? \\x1b[2J\n") and b"??: 3/3 img" in done.stderr
    assert json.loads(done.stdout[done.stdout.index(b"\n[") :])[0]["found"] == "写é \x1b[2J"


def test_closed_streams_are_no_error(manifest: Path) -> None:
    """The numbers of the streams are free then; no file may get one, and what is printed."""
    query = f"{sys.executable} -m lasr query 'SELECT role FROM patches' --manifest {manifest}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for closed in (">&-", "<&- >&-", "<&- >&- 2>&-"):
        done = subprocess.run(f"{query} {closed}", shell=True, env=environment, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), closed


def test_a_current_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"rmdir {tmp_path}/gone; {sys.executable} -m lasr build --images a --out b"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path / "gone", env=environment, capture_output=True, text=True
    )
    said = "error: the current folder no longer exists; change to another folder\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">&- 2>&-", 0, ""),
        ("> /dev/full", 1, "error: standard output: cannot be written (No space left on device; "),
    ],
)  # fmt: skip
def test_output_that_cannot_be_written(redirection: str, status: int, said: str) -> None:
    command = f"{sys.executable} -m lasr --help {redirection}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str(status)
    assert done.stderr.startswith(said) and done.stderr.count("\n") == bool(said), done.stderr


def test_a_progress_bar_moves_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Output("utf-8")
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with output.safe_streams(), progress(3, "a\x1b[2J", "img") as bar:
        bar.update(3)
        bar.refresh()
    assert "\r" in stream.text() and "a\\x1b[2J: 100%" in stream.text()
    assert "\x1b[2J" not in stream.text()


# --- names and disks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 247 + ".parquet", "é" * 127 + "x", "y" * 251])
def test_the_longest_names_can_be_written(name: str, tmp_path: Path) -> None:
    write_bytes(tmp_path / name, b"one")
    write_bytes(tmp_path / name, b"two")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"two"
    (tmp_path / "new").mkdir()
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_exchange", lambda *_: False)
        replace_folder(tmp_path / "new", tmp_path / name, lambda _: True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_leftover_of_a_kill_is_overwritten(tmp_path: Path) -> None:
    """The temporary name of a long name is always the same one, and not that of another."""
    long = tmp_path / ("x" * 255)
    first, other = files.beside(long, ".tmp"), files.beside(tmp_path / ("x" * 254 + "y"), ".tmp")
    assert first == files.beside(long, ".tmp") != other and first.name.endswith(".tmp")
    assert files.beside(tmp_path / "short", ".tmp").name == ".short.tmp"


def test_a_path_that_is_too_long_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("/".join(["x" * 200] * 30))
    assert run_command(lambda: write_bytes(path, b"")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "File name too long" in error


def test_a_full_disk_is_named_with_its_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "new" / "big.bin"):
            raise OSError(28, "No space left on device")  # as pyarrow and torch raise it

    assert run_command(write) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/new/big.bin: cannot be written (No space left on device; " in error
    assert " free); free some space and run the same" in error


def test_what_a_disk_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, atomic_path(tmp_path / "a.html") as temporary:
        temporary.touch()
        raise OSError(errno.EFBIG, "File too large")  # as `ulimit -f`; it names no file
    assert raised.value.filename == str(tmp_path / "a.html")


def test_no_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import torch

    def of(make: object) -> BaseException:
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            make()  # type: ignore[operator]
        return raised.value

    for error in (
        of(lambda: np.zeros(2**60, np.uint8)),
        of(lambda: torch.zeros(2**60, dtype=torch.uint8)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("can't start new thread"),
        MemoryError(),
    ):
        assert is_out_of_memory(error)

        def fail(error: BaseException = error) -> None:
            raise error

        assert run_command(fail) == 1
        line = capsys.readouterr().err
        assert line.startswith("error: out of memory") and line.count("\n") == 1
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
