"""CPU seconds that every command needs for its help, an unknown flag and a missing input.

    python -m benchmarks.startup
    python -m benchmarks.startup --commands build train --rounds 5

Each call is a process of its own; the table shows the fastest of its rounds, user and system time.
"""

import resource
import subprocess
import sys
import tempfile

from pydantic import BaseModel, Field

from lasr.cli import Command

# Arguments that name an input which does not exist.
MISSING = {
    "build": "--images nowhere --profile offline",
    "query": "SQL --manifest nowhere",
    "report": "--manifest nowhere",
    "picture": "--images nowhere --manifest nowhere",
    "finetune-set": "--lr-images nowhere --profile offline",
    "depth": "nowhere --out out --profile offline",
    "patches": "nowhere --out out --profile offline",
    "caption": "nowhere --profile offline",
    "serve": "",  # it has no input
    "train": "--manifest nowhere --profile offline",
    "pretrain": "--images nowhere --out out",
    "degradations": "--manifest nowhere",
    "features": "--weights nowhere --manifest nowhere",
    "upscale": "nowhere --weights nowhere --out out",
    "ui": "--manifest nowhere",
    "export": "--weights nowhere --out out.pth",
    "evaluate": "--images nowhere --weights bicubic",
    "compare": "--manifest nowhere --weights bicubic",
    "sidebyside": "nowhere",
    "curve": "nowhere",
    "weights": "verify nowhere",
    "metrics": "",
    "doctor": "--profile nowhere",
    "completion": "nowhere",
}


class StartupBenchmark(BaseModel):
    """The flags of `benchmarks.startup`."""

    commands: list[str] = Field(list(MISSING), description="commands of `lasr`")
    rounds: int = Field(3, ge=1, description="calls of each, of which the fastest counts")


def seconds(arguments: list[str], rounds: int) -> float:
    """CPU seconds of `lasr` with these arguments, in an empty folder."""
    fastest = float("inf")
    for _ in range(rounds):
        before = _children()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "lasr", *arguments]
            subprocess.run(command, cwd=folder, capture_output=True, check=False)
        fastest = min(fastest, _children() - before)
    return fastest


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(config: StartupBenchmark) -> None:
    """Print a Markdown table."""
    print(f"`lasr --version`: {seconds(['--version'], config.rounds):.2f} s\n")
    print("| command | --help | unknown flag | missing input |\n|---|---|---|---|")
    for name in config.commands:
        calls = (["--help"], ["--no-such-flag"], MISSING[name].split())
        times = [
            f"{seconds([name, *call], config.rounds):.2f} s" if call else "none" for call in calls
        ]
        print(f"| {name} | {' | '.join(times)} |", flush=True)


main = Command(StartupBenchmark, run, name="python -m benchmarks.startup", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
