"""Look at this machine and say what is wrong before a long run does.

    python -m lasr.doctor                              # for both programs, profile default
    python -m lasr.doctor --profile paper --photographs 88000
    python -m lasr.doctor --program trainer --json

Everything is tried, not only looked up: torchvision's operators, a query over Parquet, Prefect's
server, a kernel on the GPU, a file in the data folder. Nothing is changed, fetched or sent. Exit
status 1 where something that the chosen programs need is wrong (✗).
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.doctor import environment as installed
from lasr.doctor import machine as room
from lasr.doctor import server
from lasr.doctor.finding import Finding, wrong
from lasr.errors import UserError
from lasr.weights.locate import Kind, Profile

MARKS = {"ok": "✓", "warning": "!", "wrong": "✗"}
# What of a profile each program loads.
KINDS: dict[str, tuple[Kind, ...]] = {
    "pipeline": ("depth", "clip"),
    "trainer": ("clip", "vgg", "sr"),
    "both": ("depth", "clip", "vgg", "sr"),
}
EXTRAS = {"pipeline": ["pipeline"], "trainer": ["trainer"], "both": ["pipeline", "trainer"]}


class DoctorConfig(BaseModel):
    """What `lasr.doctor` takes."""

    profile: Profile = Field("default", description="the models that will run")
    program: Literal["pipeline", "trainer", "both"] = Field(
        "both", description="what will run here"
    )
    data: Path = Field(Path("data"), description="the folder that will be written to")
    photographs: int = Field(1000, ge=1, description="how many photographs will be built")
    json_: bool = Field(False, description="print the results as JSON")


def examine(arguments: DoctorConfig) -> Iterator[Finding]:
    """All findings, one after the other."""
    kinds, profile, data = KINDS[arguments.program], arguments.profile, arguments.data
    pipeline = "depth" in kinds
    extras = frozenset(
        {"pipeline", "trainer"} if arguments.program == "both" else {arguments.program}
    )
    checks: list[Callable[[], Iterable[Finding]]] = [
        installed.python,
        lambda: installed.packages(extras),
        installed.torch,
        installed.opencv,
        lambda: installed.parquet(query=pipeline),
        *([server.health] if pipeline else []),
        lambda: room.weights(profile, kinds),
        lambda: room.disk(data, profile, kinds, arguments.photographs),
        lambda: room.memory(profile, kinds),
        lambda: room.folders(data),
        room.variables,
    ]
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever is broken here, the other checks still help
            name = getattr(check, "__name__", "check")
            yield wrong(name, f"{type(error).__name__}: {error}", "report this as a bug of ours")


def show(finding: Finding) -> None:
    """A line, and beneath it what to do."""
    found = " ".join(finding.found.split())
    print(f"{MARKS[finding.level]} {finding.about}: {found}", flush=True)
    if finding.fix:
        print(f"    → {' '.join(finding.fix.split())}", flush=True)


def run(arguments: DoctorConfig) -> None:
    """Examine, print, and raise UserError where something needed is wrong."""
    findings = []
    for finding in examine(arguments):
        findings.append(finding)
        if not arguments.json_:
            show(finding)
    if arguments.json_:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    faults = [finding for finding in findings if finding.level == "wrong"]
    if faults:
        names = ", ".join(dict.fromkeys(finding.about for finding in faults))
        raise UserError(
            f"{len(faults)} of {len(findings)} wrong: {names}; do what stands beside each"
        )


main = Command(DoctorConfig, run, name="lasr doctor", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
