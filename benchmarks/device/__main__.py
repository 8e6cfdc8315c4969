"""Measure LA-SR on a GPU in one command of a few minutes: parts on clocks of their own, one table.

    python -m benchmarks.device --minutes 8 --out device.json
    python -m benchmarks.device --only step captions --minutes 3
    python -m benchmarks.device --size small                      # on a CPU: that it all works

Weights are random and of full size: time does not depend on them. Each part is a process of its
own. One that fails, is killed at its limit or needs a package that is missing leaves a line that
says so, and what it had measured until then; the others go on. No Prefect and no DuckDB is needed.
"""

import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from benchmarks.device.record import Part, line_of, run_part
from lasr.cli import Command
from lasr.device import Device
from lasr.errors import UserError

# In the order in which they run, with the share of the time that each may take at most. What they
# leave of it is for those that follow.
PARTS = {
    "ceilings": 0.06,
    "tests": 0.24,
    "step": 0.38,
    "captions": 0.14,
    "build": 0.22,
    "upscale": 0.16,
    "depth": 0.20,
    "train": 0.18,
    "depthfm": 0.12,
}
LEAST = 5.0  # seconds in which no part can measure anything


class DeviceBenchmark(BaseModel):
    """Parameters of `benchmarks.device`."""

    only: list[str] = Field([], description=f"parts to run, of {' '.join(PARTS)} (default: all)")
    skip: list[str] = Field([], description="parts to leave out")
    minutes: float = Field(8, gt=0, description="for all parts together")
    size: str = Field("full", pattern="full|small", description="of networks and pictures")
    out: Path | None = Field(None, description="JSON file; the table goes beside it, as .md")
    device: Device = Field("auto", description="where the networks run")


def measure_all(options: DeviceBenchmark) -> list[dict[str, Any]]:
    """Run the parts one after the other; returns their rows."""
    if unknown := [name for name in [*options.only, *options.skip] if name not in PARTS]:
        raise UserError(f"no part {unknown[0]}", f"choose from {' '.join(PARTS)}")
    chosen = [p for p in PARTS if p in (options.only or PARTS) and p not in options.skip]
    end = time.monotonic() + 60 * options.minutes
    rows: list[dict[str, Any]] = []
    # A server that has imported everything and never touched the device forks each part.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *(p for p in sys.path if p)])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.device.networks"])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        shares = sum(PARTS[part] for part in chosen)
        for number, part_name in enumerate(chosen):
            left = end - time.monotonic()
            file = folder / f"{number}.jsonl"
            file.touch()
            limit = min(left, 60 * options.minutes * PARTS[part_name] / min(1, shares))
            small = options.size == "small"
            part = Part(part_name, options.device, small, folder, limit, file)
            started = time.monotonic()
            if limit < LEAST:
                part.write({"what": "the part", "skipped": "no time left"})
            else:
                print(f"{part_name}, at most {limit:.0f} s", flush=True)
                process = context.Process(target=run_part, args=(part,))
                process.start()
                process.join(limit)
                if process.is_alive():
                    end_group(process)
                    part.write({"what": "the part", "error": f"ended at its {limit:.0f} s"})
                elif process.exitcode:
                    part.write({"what": "the part", "error": f"ended with {process.exitcode}"})
            found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            seconds = time.monotonic() - started
            rows += [*found, {"part": part_name, "what": "the part", "value": seconds, "unit": "s"}]
            if options.out:
                save(options.out, rows)
    return rows


def end_group(process: BaseProcess) -> None:
    """End a part that is late, and what it started."""
    assert process.pid
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        process.join(2)
    process.kill()
    process.join()


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
