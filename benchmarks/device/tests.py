"""The tests marked `gpu`: every path on the device against the CPU."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.device.record import Part


def measure(part: Part) -> None:
    """One row for each test, and its last line if it failed."""
    report = part.folder / "tests.xml"
    # By name: other files need packages that a bare machine lacks.
    files = [str(path) for path in sorted(Path("tests").rglob("test_on_gpu.py"))]
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", *files, "-rfE", f"--junitxml={report}",
        "-p", "no:cacheprovider", "--timeout", str(int(max(part.left() - 10, 10))),
    ]  # fmt: skip
    with open(part.folder / "tests.log", "w+", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
        log.seek(0)
        said = log.read()
    part.text("pytest", said[-6000:])
    if report.exists():
        for case in ET.parse(report).iter("testcase"):
            fault = case.find("failure") if case.find("error") is None else case.find("error")
            name = f"{case.get('classname')}.{case.get('name')}"
            if fault is not None:
                part.write({"what": name, "error": (fault.get("message") or "")[:300]})
            elif case.find("skipped") is None:
                part.row(name, float(case.get("time") or 0), "s, passed")
    part.row("pytest", done.returncode, "exit status")
