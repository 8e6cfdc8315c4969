"""What a part of the measurement is given, and how it notes what it finds."""

import importlib
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Part:
    """What a part has to know, and where it writes what it finds."""

    name: str
    device: str
    small: bool
    folder: Path  # shared by the parts, removed at the end
    file: Path  # of the rows of all parts, one JSON object a line
    seconds: float  # that it may take
    started: float = field(default_factory=time.monotonic)

    def rows(self) -> list[dict[str, Any]]:
        """What was written so far, by all parts."""
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def to_json(self) -> str:
        """For the command line of the part's process."""
        return json.dumps(
            [self.name, self.device, self.small, str(self.folder), str(self.file), self.seconds]
        )

    def row(self, what: str, value: float, unit: str, **more: Any) -> None:
        """Note a figure at once, so that it outlives the part."""
        self.write({"what": what, "value": value, "unit": unit, **more})

    def text(self, what: str, text: str) -> None:
        """Note a longer text, such as a profile."""
        self.write({"what": what, "text": text})

    def left(self) -> float:
        """Seconds until this part is ended."""
        return self.seconds - (time.monotonic() - self.started)

    def attempt(self, what: str, work: Callable[[], object], seconds: float = 0) -> None:
        """Do a piece of the part; its failure is noted, and the part goes on.

        seconds: what it needs; with less than that left it is passed over.
        """
        if self.left() < seconds:
            self.write({"what": what, "skipped": f"{self.left():.0f} s left, needs {seconds:.0f}"})
            return
        started = time.monotonic()
        try:
            work()
        except Exception as error:
            self.write({"what": what, "error": last_line(error)})
            traceback.print_exc()
        print(f"  {self.name}: {what}: {time.monotonic() - started:.1f} s", flush=True)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to the part's file."""
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.name, **row}) + "\n")
        if "text" not in row:
            print("  " + line_of({"part": self.name, **row}), flush=True)


def last_line(error: BaseException) -> str:
    """The last line of the traceback, with the place of ours that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f[0]]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return " ".join(traceback.format_exception_only(error)[-1].split())[:300] + place


def line_of(row: dict[str, Any]) -> str:
    """A row of the table, in Markdown."""
    if "error" in row or "skipped" in row:
        kind = "error" if "error" in row else "skipped"
        return f"| {row['part']} | {row['what']} | {kind}: {row[kind]} | |"
    known = {"part", "what", "value", "unit"}
    more = ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in row.items() if k not in known)
    return f"| {row['part']} | {row['what']} | {_short(row['value'])} {row['unit']} | {more} |"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def main(modules: str, *parts: str) -> None:
    """Run parts in this process. modules: a pattern for their names; parts: `Part.to_json`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    for text in parts:
        name, device, small, folder, file, seconds = json.loads(text)
        part = Part(name, device, small, Path(folder), Path(file), seconds)
        try:
            module = importlib.import_module(modules.format(name))
            part.row("imports", time.monotonic() - part.started, "s")
            part.started = time.monotonic()
            module.measure(part)
        except Exception as error:
            traceback.print_exc()
            part.write({"what": "the part", "error": last_line(error)})
        part.row("the part", time.monotonic() - part.started, "s")


if __name__ == "__main__":
    main(*sys.argv[1:])
