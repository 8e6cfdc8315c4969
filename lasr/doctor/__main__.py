"""Check this machine before a long run.

    lasr doctor                                        # both programs, profile default
    lasr doctor --profile paper --photographs 88000
    lasr doctor --program trainer --json

Each check tries the thing itself: torchvision's operators, a Parquet file, Prefect's server, a
kernel on the GPU, a file in the data folder. Nothing is changed, downloaded or sent. The exit
status is 1 if a check fails (✗).
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from lasr.cli import run_command
from lasr.doctor import environment, machine
from lasr.doctor.environment import Result
from lasr.errors import UserError, one_line
from lasr.weights.locate import weights_folder
from lasr.weights.registry import PROFILES, Kind

MARKS = {"ok": "✓", "warning": "!", "wrong": "✗"}
# The weights of a profile that each program loads.
KINDS: dict[str, tuple[Kind, ...]] = {
    "pipeline": ("depth", "clip"),
    "trainer": ("clip", "vgg", "sr"),
    "both": ("depth", "clip", "vgg", "sr"),
}
BUG = "report this as a bug of LA-SR"
Check = Callable[[], str | Iterable[Result]]


def checks(arguments: argparse.Namespace) -> Iterator[tuple[str, Check, str]]:
    """Each check's subject, the function, and what to do if the function raises."""
    kinds, profile, data = KINDS[arguments.program], arguments.profile, arguments.data
    extras = ["pipeline", "trainer"] if arguments.program == "both" else [arguments.program]
    yield "Python", lambda: f"{platform.python_version()} at {sys.executable}", BUG
    yield "packages", lambda: environment.packages(extras), "run `pip install .` in the project"
    fix = "run `pip install --force-reinstall torch torchvision`"
    yield "PyTorch", environment.pytorch, fix
    fix = "run `nvidia-smi`, and install the PyTorch build for your driver and GPU (pytorch.org)"
    yield "GPU", environment.gpu, fix
    fix = "install the two together: `pip install --upgrade torch torchvision`"
    yield "torchvision", environment.torchvision, fix
    yield "OpenCV", environment.opencv, environment.REINSTALL_OPENCV
    if "pipeline" in extras:
        fix = "run `pip install --force-reinstall pyarrow duckdb`"
        yield "DuckDB", environment.duckdb, fix
        yield "Prefect", environment.prefect, BUG
    yield "weights", lambda: machine.weights(profile, kinds), BUG
    yield "disk", lambda: machine.disk(data, profile, kinds, arguments.photographs), BUG
    yield "memory", lambda: machine.memory(profile, kinds), BUG
    yield "data folder", lambda: machine.writable(data), BUG
    yield "temporary folder", lambda: machine.writable(Path(tempfile.gettempdir())), BUG
    yield "weights folder", lambda: machine.writable(weights_folder()), BUG
    yield "settings", lambda: machine.settings(), BUG


def examine(arguments: argparse.Namespace) -> Iterator[Result]:
    """Run all checks; one that raises does not stop the others."""
    for about, check, fix in checks(arguments):
        try:
            outcome = check()
            yield from [Result("ok", about, outcome)] if isinstance(outcome, str) else outcome
        except UserError as error:
            yield Result("wrong", about, error.problem, error.fix)
        except Exception as error:  # a broken library can raise anything when it loads
            yield Result("wrong", about, f"{type(error).__name__}: {one_line(error)}", fix)


def show(result: Result) -> None:
    """Print a result on one line, and its fix on a second one."""
    print(f"{MARKS[result.level]} {result.about}: {' '.join(result.found.split())}", flush=True)
    if result.fix:
        print(f"    → {' '.join(result.fix.split())}", flush=True)


def run(arguments: argparse.Namespace) -> None:
    """Run all checks and print the results. Raises UserError if one of them fails."""
    results = []
    for result in examine(arguments):
        results.append(result)
        if not arguments.json:
            show(result)
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False))
    failed = [result.about for result in results if result.level == "wrong"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(results)} checks failed: {', '.join(dict.fromkeys(failed))}",
            "follow the advice given with each",
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lasr.doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--profile", choices=list(PROFILES), default="default", help="the models that will run")
    add("--program", choices=list(KINDS), default="both", help="what will run here (default: both)")
    add("--data", type=Path, default=Path("data"), help="the folder that will be written to")
    add("--photographs", type=int, default=1000, help="how many will be built (default: 1000)")
    add("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
