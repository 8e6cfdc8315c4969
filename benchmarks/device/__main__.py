"""Measure LA-SR on a GPU in one command of a few minutes: parts on clocks of their own, one table.

    python -m benchmarks.device --minutes 8 --out device.json
    python -m benchmarks.device --only step captions --minutes 3
    python -m benchmarks.device --size small                      # on a CPU: that it all works

Weights are random and of full size: time does not depend on them. Each part is a fresh process of
its own, one at a time. One that fails, is killed at its limit or needs a package that is missing
leaves a line that says so, and what it had measured until then; the others go on. Rows are written
as they come. No Prefect and no DuckDB is needed.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from benchmarks.device.record import Part, line_of
from lasr.cli import Command
from lasr.device import Device
from lasr.errors import UserError

# In the order in which they run, with the share of the time that each may take at most. What they
# leave of it is for those that follow.
PARTS = {
    "ceilings": 0.06,
    "step": 0.40,
    "captions": 0.14,
    "depth": 0.14,
    "upscale": 0.14,
    "build": 0.16,
    "train": 0.16,
    "compiled": 0.30,
    "blocks": 0.16,
    "depthfm": 0.10,
    "tests": 0.30,
}
LEAST = 3.0  # seconds in which no part can measure anything
MODULES = "benchmarks.device.{}"


class DeviceBenchmark(BaseModel):
    """Parameters of `benchmarks.device`."""

    only: list[str] = Field([], description=f"parts to run, of {' '.join(PARTS)} (default: all)")
    skip: list[str] = Field([], description="parts to leave out")
    minutes: float = Field(8, gt=0, description="for all parts together")
    size: str = Field("full", pattern="full|small", description="of networks and pictures")
    out: Path | None = Field(
        None, description="JSON file; the table and the rows as they come go beside it"
    )
    together: bool = Field(
        False, description="all parts in one process, which loads libraries once: a shared fate"
    )
    device: Device = Field("auto", description="where the networks run")


def measure_all(options: DeviceBenchmark) -> list[dict[str, Any]]:
    """Run the parts one after the other; returns their rows."""
    if unknown := [name for name in [*options.only, *options.skip] if name not in PARTS]:
        raise UserError(f"no part {unknown[0]}", f"choose from {' '.join(PARTS)}")
    chosen = [p for p in PARTS if p in (options.only or PARTS) and p not in options.skip]
    total = 60 * options.minutes
    end = time.monotonic() + total
    shares = min(1, max(sum(PARTS[part] for part in chosen), 0.01))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        file = options.out.with_suffix(".jsonl") if options.out else folder / "rows.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("", encoding="utf-8")
        for names in [chosen] if options.together else [[part] for part in chosen]:
            parts = [
                Part(part, options.device, options.size == "small", folder, file,
                     min(end - time.monotonic(), total * PARTS[part] / shares))
                for part in names
            ]  # fmt: skip
            run_parts(parts, end)
            rows = parts[0].rows()
            if options.out:
                save(options.out, rows)
    return rows


def run_parts(parts: list[Part], end: float) -> None:
    """Run parts in a fresh process, which is killed at its limit. end: of all parts."""
    last, limit = parts[-1], min(end - time.monotonic(), sum(part.seconds for part in parts))
    if limit < LEAST:
        for part in parts:
            part.write({"what": "the part", "skipped": "no time left"})
        return
    print(f"{' '.join(part.name for part in parts)}, at most {limit:.0f} s", flush=True)
    # Not a fork: if a library has asked for the number of GPUs, a fork of the process that
    # imported it cannot use one. And one at a time, so that nothing else is on the machine.
    command = [sys.executable, "-m", "benchmarks.device.record"]
    command += [MODULES, *(part.to_json() for part in parts)]
    paths = os.pathsep.join([str(Path.cwd()), *(path for path in sys.path if path)])
    try:
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, timeout=limit)
    except subprocess.TimeoutExpired:
        last.write({"what": "the process", "error": f"ended at its {limit:.0f} s"})
        return
    if done.returncode:
        last.write({"what": "the process", "error": f"ended with {done.returncode}"})


def save(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write what is known so far, as JSON and as a table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8")
    out.with_suffix(".md").write_text(table(rows) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures are of. Does not touch the device: a part does, and notes its name."""
    return {
        "torch": version("torch"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown, and the texts after it."""
    lines = ["| part | what | figure | more |", "|---|---|---|---|"]
    lines += [line_of(row) for row in rows if "text" not in row]
    for row in rows:
        if "text" in row:
            lines += ["", f"{row['part']}: {row['what']}", "```", row["text"].rstrip(), "```"]
    return "\n".join(lines)


def run(options: DeviceBenchmark) -> None:
    """Measure, and print the table."""
    rows = measure_all(options)
    print("\n" + "\n".join(table([row for row in rows if "text" not in row]).splitlines()))


main = Command(DeviceBenchmark, run, name="python -m benchmarks.device", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
