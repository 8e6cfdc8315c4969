"""What a part of the measurement is given, and how it notes what it finds."""

import importlib
import json
import os
import time
import traceback
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
    seconds: float  # that it may take
    file: Path
    started: float = field(default_factory=time.monotonic)

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


def run_part(part: Part) -> None:
    """Run a part in this process, which is its own."""
    os.setpgrp()  # what the part starts ends with it
    part.started = time.monotonic()
    from benchmarks.device import networks

    networks.prepare_process(part.device)
    try:
        importlib.import_module(f"benchmarks.device.{part.name}").measure(part)
    except Exception as error:
        traceback.print_exc()
        part.write({"what": "the part", "error": last_line(error)})
