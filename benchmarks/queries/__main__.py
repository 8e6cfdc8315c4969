"""Time every ready question and the report on large manifests, from a disk and from S3.

    python -m benchmarks.queries --rows 100000
    python -m benchmarks.queries --rows 10000000 --folder /tmp/queries    # 3 GB, kept for next time

Each is a `lasr query` or `lasr report` of its own. The table shows seconds, CPU seconds of all
threads, the most memory that the process had (VmHWM), and what it read: from files, counted by the
kernel (rchar: the program's own modules, 15 MB, included), or from a server on this machine that
speaks S3 and answers `--delay` milliseconds late.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from benchmarks.queries.made import make_manifest
from benchmarks.s3_server import S3, serving
from lasr.cli import Command
from pipeline.query.questions import QUESTIONS

SQL = {
    "SQL: by role": "SELECT role, count(*), avg(distance) FROM patches GROUP BY role",
    "SQL: words": "SELECT word, count(*) AS n FROM words GROUP BY word ORDER BY n DESC LIMIT 20",
}
NAMES = [*QUESTIONS, *SQL, "report"]
CHILD = r"""
import re, resource, sys
from pathlib import Path
from lasr.__main__ import main
status = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
memory = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]
read = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1]
print("@@", used.ru_utime + used.ru_stime, memory, read, file=sys.stderr)
sys.exit(status)
"""


class QueriesBenchmark(BaseModel):
    """The flags of `benchmarks.queries`."""

    rows: list[int] = Field([100_000], description="rows of the manifests; one of each is made")
    ask: list[str] = Field(NAMES, description="names of questions, `report`, or `SQL: …`")
    sources: list[Literal["disk", "s3"]] = Field(["disk", "s3"], description="where from")
    delay: float = Field(20, ge=0, description="milliseconds by which each S3 request is late")
    folder: Path | None = Field(None, description="where the manifests are kept (default: nowhere)")
    memory_limit: str | None = Field(None, description="--memory-limit of each command")


def run(config: QueriesBenchmark) -> None:
    """Print a Markdown table for each number of rows and source."""
    with ExitStack() as stack:
        folder = config.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for rows in config.rows:
            manifest = folder / str(rows) / "patches.parquet"
            if not manifest.exists():
                start = time.monotonic()
                make_manifest(manifest, rows)
                print(f"{rows:,} rows made in {time.monotonic() - start:.0f} s\n", flush=True)
            for source in config.sources:
                on_s3 = serving(folder, config.delay / 1000) if source == "s3" else nullcontext()
                with on_s3 as s3:
                    where = f"s3://{rows}/patches.parquet" if s3 else str(manifest)
                    print(f"{rows:,} rows, {source}\n\n{HEAD}", flush=True)
                    for name in config.ask:
                        print(line(name, where, config.memory_limit, s3), flush=True)
                    print()


HEAD = "| question | s | CPU s | memory, MB | read, MB | requests |\n|---|---|---|---|---|---|"


def measured(
    name: str, manifest: str, memory_limit: str | None, variables: dict[str, str]
) -> dict[str, float]:
    """Run one command in a process of its own. Raises RuntimeError if it fails."""
    limit = ["--memory-limit", memory_limit] if memory_limit else []
    asked = [SQL[name]] if name in SQL else ["--ask", name]
    with tempfile.TemporaryDirectory() as folder:
        command = ["query", *asked, "--format", "csv"]
        if name == "report":
            command = ["report", "--out", f"{folder}/report.html"]
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *command, "--manifest", manifest, *limit],
            env=os.environ | variables, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    seconds = time.monotonic() - start
    found = re.search(r"@@ (\S+) (\d+) (\d+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(f"{name}: {done.stderr[-500:]}")
    cpu, memory, read = map(float, found.groups())
    return {"seconds": seconds, "cpu": cpu, "memory": memory / 1e3, "read": read / 1e6}


def line(name: str, manifest: str, memory_limit: str | None, s3: S3 | None) -> str:
    """Ask, and make a row of the table. s3: the server, if the manifest is there."""
    if s3:
        s3.counts()
    used = measured(name, manifest, memory_limit, s3.environment if s3 else {})
    read, requests = used["read"], ""
    if s3:
        number, sent = s3.counts()
        read, requests = sent / 1e6, f"{number:,}"
    return (
        f"| {name} | {used['seconds']:.1f} | {used['cpu']:.1f} | {used['memory']:,.0f} |"
        f" {read:,.0f} | {requests} |"
    )


main = Command(QueriesBenchmark, run, name="python -m benchmarks.queries", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
