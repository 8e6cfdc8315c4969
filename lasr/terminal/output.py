"""Everything printed: in any encoding, and without the control characters of foreign names."""

import codecs
import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

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


def say(text: object = "") -> None:
    """Print one line that holds names of files: a newline in a name does not begin another line."""
    print(re.sub(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", " ", str(text)), flush=True)


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


class Safe:
    """A text stream that writes escaped text, in the characters that its encoding has."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""  # a progress bar of a library
        safe = start + escaped(text[len(start) :].replace("\r\n", "\n"))
        encoding = self.stream.encoding
        if encoding:
            safe = safe.encode(encoding, "lasr.terminal").decode(encoding)
        self.stream.write(safe)
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
        stream if stream is None or isinstance(stream, Safe) else Safe(stream) for stream in before
    )  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


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
