"""The tests marked `gpu`: every path on the device against the CPU."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.device.record import Part

RESULT = re.compile(r"(PASSED|FAILED|ERROR)\s+(tests/\S+)|(tests/\S+)\s+(PASSED|FAILED|ERROR)")


def measure(part: Part) -> None:
    """One row for each test as it ends, and pytest's last words."""
    # By name: other files need packages that a bare machine lacks.
    files = [str(path) for path in sorted(Path("tests").rglob("test_on_gpu.py"))]
    each = max(10, int(part.left() * 0.6))
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rfE", "--tb", "short", *files,
        "-p", "no:cacheprovider", "-n", "0", "--timeout", str(each),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    said = []
    for line in process.stdout:
        print(line, end="", flush=True)
        said.append(line)
        if found := RESULT.search(line):
            how, name = (found[1], found[2]) if found[1] else (found[4], found[3])
            if how == "PASSED":
                part.row(name, part.seconds - part.left(), "s after the start: passed")
            else:
                part.write({"what": name, "error": how.lower()})
    part.text("pytest", "".join(said)[-8000:])
    part.row("pytest", process.wait(), "exit status")
