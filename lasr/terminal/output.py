"""Everything printed: in any encoding, and without the control characters of foreign names."""

import codecs
import contextlib
import functools
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, Protocol, TextIO
from weakref import WeakSet

from lasr.errors import written_out

# C0 without tab and newline, DEL, C1, marks and overrides of writing direction, line and paragraph
# separators, bytes of file names that are not UTF-8.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)
_ASCII = {
    **dict.fromkeys("─━═╌┄", "-"), **dict.fromkeys("│┃║┆", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╞╡╪╒╕╘╛╔╗╚╝", "+"), "·": ".", "…": "~", "✓": "v", "✗": "x", "→": ">",
    "\u00d7": "x", "\u2013": "-", "\u2014": "-",  # times, dashes
}  # fmt: skip


def escaped(text: str) -> str:
    """Text with control characters written out, as \\x1b; tabs and newlines stay."""
    return _CONTROL.sub(lambda found: written_out(found[0]), text)


_quiet = False  # of the command that runs


def be_quiet(quiet: bool) -> None:
    """Whether this command says no more than its errors and its result: flag --quiet."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether this command says no more than its errors and its result."""
    return _quiet


def say(text: object = "") -> None:
    """Print one line that holds names of files: a newline in a name does not begin another line."""
    print(_on_one_line(text), flush=True)


def note(text: object) -> None:
    """Print one line on standard error that is no part of the result; nothing with --quiet."""
    if not _quiet:
        print(_on_one_line(text), file=sys.stderr, flush=True)


def _on_one_line(text: object) -> str:
    return re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", " ", str(text))


def interjected(text: str) -> bytes:
    """A line for `os.write`, as signal handlers need it: in place of a progress bar, if any."""
    clear = "\r\x1b[K" if os.isatty(2) and os.name != "nt" else ""
    return f"{clear}{text}\n".encode()


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, in as many columns: tables stay aligned."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or "?" * _columns(c) for c in text), error.end


def _columns(character: str) -> int:
    """Columns of a character on a terminal."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


codecs.register_error("lasr.terminal", _replaced)


class Bar(Protocol):
    """A progress bar, as tqdm's."""

    def clear(self) -> None:
        """Remove it from the terminal."""

    def refresh(self) -> object:
        """Draw it."""


bars: "WeakSet[Bar]" = WeakSet()  # on the terminal now; what is printed goes above them
_COLOURS = {"error:": "1;31", "WARNING:": "33", "next:": "1"}  # first words of our lines


def has_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and its user wants them (NO_COLOR)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("", "dumb")
    return stream.isatty() and not plain


class Safe:
    """A text stream that writes escaped text, in the characters that its encoding has.

    On a terminal, lines appear above the progress bars, and the first words of ours in colour.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""  # a progress bar of a library
        safe = start + escaped(text[len(start) :].replace("\r\n", "\n"))
        encoding = self.stream.encoding
        if encoding:
            safe = safe.encode(encoding, "lasr.terminal").decode(encoding)
        first = safe.partition(" ")[0]
        if first in _COLOURS and has_colours(self.stream):
            safe = f"\x1b[{_COLOURS[first]}m{first}\x1b[0m{safe[len(first) :]}"
        shown = list(bars) if bars and self.stream.isatty() else []
        for bar in shown:
            bar.clear()
        self.stream.write(safe)
        if safe.endswith("\n"):  # `print` writes the end of a line by itself
            for bar in shown:
                bar.refresh()
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Let everything printed in this block pass through `escaped`, whatever prints it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, Safe) else Safe(stream or _nowhere()) for stream in before
    )  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@functools.cache
def _nowhere() -> TextIO:
    """What takes the place of a stream that the shell closed.

    Otherwise the next file that is opened gets its number, and what libraries print.
    """
    return open(os.devnull, "w", encoding="utf-8", newline="")


@contextlib.contextmanager
def until_pipe_closes() -> Iterator[None]:
    """End quietly where the reader of a pipe is gone, such as `| head`, or there is no output."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except OSError:
        if sys.stdout is not None and not _flushes():
            _drop_output()  # else Python fails once more at its end
        raise


def _flushes() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _drop_output() -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a file, in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
