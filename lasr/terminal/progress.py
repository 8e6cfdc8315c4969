"""Log records on one line each, and progress bars."""

import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any, TextIO

from lasr.errors import printable
from lasr.terminal.output import Safe, bars, is_quiet

if TYPE_CHECKING:
    from tqdm import tqdm


SECONDS = 10  # between two lines about progress, where there is no terminal


class _OneLine(logging.Formatter):
    """A log record on one line; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)


def set_up_logging(level: int, packages: tuple[str, ...], least: int = logging.WARNING) -> None:
    """Log to standard error: these packages from `level` on, all others from `least` on.

    A library's logger may have a level of its own, as Prefect's do: `least` holds for them, too. A
    record with the attribute `ours` is one of these packages, whatever logger it went through.
    """

    def is_shown(record: logging.LogRecord) -> bool:
        ours = record.name.split(".")[0] in packages or getattr(record, "ours", False)
        return record.levelno >= (level if ours else least)

    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    handler.addFilter(is_shown)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # Libraries import bitsandbytes if it is installed, and it warns of a kernel that nothing uses.
    for name, own in {**dict.fromkeys(packages, level), "bitsandbytes": logging.ERROR}.items():
        logger = logging.getLogger(name)
        if logger.level != own:  # setting it visits all loggers of the process
            logger.setLevel(own)
    warnings.formatwarning = _warning


def _warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning of a library on one line, without the line of its source."""
    return f"WARNING: {printable(str(message))}\n"


class _Lines:
    """A stream for tqdm where there is no terminal: a plain line now and then, no control codes.

    Nothing is said of what has just begun, and nothing twice.
    """

    def __init__(self, stream: TextIO):
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        count = line.partition(" (")[0]
        if line and count != self._last and "ETA ?" not in line:
            self._last = count
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def _bar_class() -> Any:
    """tqdm, imported on use; it counts what is finished and estimates from what is begun, too."""
    from tqdm import tqdm

    class _Bar(tqdm):  # type: ignore[misc, type-arg]
        @staticmethod
        def format_meter(n: float, total: float, elapsed: float, **more: Any) -> str:
            if more.get("rate") is None and elapsed:
                more["rate"] = (n - more.get("initial", 0)) / elapsed or None
            whole = n if more.get("unit_scale") is True else int(n + 1e-6)
            text: str = tqdm.format_meter(whole, total, elapsed, **more)
            return text

        def close(self) -> None:
            bars.discard(self)
            super().close()

    return _Bar


def progress(
    total: int | None,
    what: str,
    unit: str,
    initial: int = 0,
    quiet: bool = False,
    scaled: bool = False,
) -> "tqdm[Any]":
    """A progress bar with rate and ETA on a terminal, a log line every ten seconds elsewhere.

    On a terminal it goes when it is closed, and lines are printed above it. An update may be a
    fraction: it counts for the ETA, and the number shown is that of finished items.

    quiet: show nothing, where another process shows it. scaled: 12.3M instead of 12300000.
    """
    what = printable(what)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if terminal:
        style: dict[str, Any] = {"dynamic_ncols": True, "smoothing": 0.1, "leave": False}
        if isinstance(sys.stderr, Safe):
            style["file"] = sys.stderr.stream  # it moves the cursor
            style["ascii"] = not str(sys.stderr.encoding).lower().startswith("utf")
    else:
        style = {
            "file": _Lines(sys.stderr),
            "mininterval": SECONDS,
            "ascii": True,
            "bar_format": "{desc}: {n_fmt}/{total_fmt} {unit}"
            " ({rate_fmt}, ETA {remaining}){postfix}",
        }
    bar: tqdm[Any] = _bar_class()(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        disable=quiet or is_quiet() or sys.stderr is None,
        unit_scale=scaled,
        **style,
    )
    if terminal and not bar.disable:
        bars.add(bar)
    return bar
