"""Log records on one line each, and progress bars."""

import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any, TextIO

from lasr.errors import printable
from lasr.terminal.output import Safe

if TYPE_CHECKING:
    from tqdm import tqdm


class _OneLine(logging.Formatter):
    """A log record on one line; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)


def set_up_logging(level: int, packages: tuple[str, ...]) -> None:
    """Log to standard error: these packages from `level` on, others their warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Libraries import bitsandbytes if it is installed, and it warns of a kernel that nothing uses.
    for name, least in {**dict.fromkeys(packages, level), "bitsandbytes": logging.ERROR}.items():
        logger = logging.getLogger(name)
        if logger.level != least:  # setting it visits all loggers of the process
            logger.setLevel(least)
    warnings.formatwarning = _warning


def _warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning of a library on one line, without the line of its source."""
    return f"WARNING: {printable(str(message))}\n"


class _Lines:
    """A stream for tqdm where there is no terminal: a plain line now and then, no control codes."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress(
    total: int | None,
    what: str,
    unit: str,
    initial: int = 0,
    quiet: bool = False,
    scaled: bool = False,
) -> "tqdm[Any]":
    """A progress bar with rate and ETA on a terminal, a log line every ten seconds elsewhere.

    quiet: show nothing, where another process shows it. scaled: 12.3M instead of 12300000.
    """
    from tqdm import tqdm

    what = printable(what)
    if sys.stderr is not None and sys.stderr.isatty():
        style: dict[str, Any] = {"dynamic_ncols": True, "smoothing": 0.1}
        if isinstance(sys.stderr, Safe):
            style["file"] = sys.stderr.stream  # it moves the cursor
            style["ascii"] = not str(sys.stderr.encoding).lower().startswith("utf")
    else:
        style = {
            "file": _Lines(sys.stderr),
            "mininterval": 10,
            "ascii": True,
            "bar_format": "{desc}: {n_fmt}/{total_fmt} {unit}"
            " ({rate_fmt}, ETA {remaining}){postfix}",
        }
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        disable=quiet or sys.stderr is None,
        unit_scale=scaled,
        **style,
    )
