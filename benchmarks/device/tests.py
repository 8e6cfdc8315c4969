"""The tests marked `gpu`: every path on the device against the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.device.record import Part

MARK = "gpu test"


def measure(part: Part) -> None:
    """One row for each test as it ends, with what a failed one says, and pytest's last words."""
    # By name: other files need packages that a bare machine lacks.
    files = [str(path) for path in sorted(Path("tests").rglob("test_on_gpu.py"))]
    each = max(10, int(part.left() * 0.4))
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", "--tb", "short", *files,
        "-p", "no:cacheprovider", "-p", __name__, "-s", "-n", "0", "--timeout", str(each),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    said = []
    for line in process.stdout:
        print(line, end="", flush=True)
        said.append(line)
        if line.startswith(MARK):
            outcome, name = line.removeprefix(MARK).split()
            if outcome == "passed":
                part.row(name, part.seconds - part.left(), "s after the start: passed")
            else:
                part.write({"what": name, "error": outcome})
    part.text("pytest", "".join(said)[-8000:])
    part.row("pytest", process.wait(), "exit status")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once how a test ended: the process may be killed before pytest's summary."""
    if report.when == "call" or not report.passed:
        print(f"\n{MARK} {report.outcome} {report.nodeid}", flush=True)
    if report.failed:
        print(report.longreprtext[-4000:], flush=True)
