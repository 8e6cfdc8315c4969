"""Check this machine before a long run.

    lasr doctor                                        # both programs, profile default
    lasr doctor --profile paper --photographs 88000
    lasr doctor --program trainer --json
    lasr doctor --program trainer --manifest s3://bucket/data/patches.parquet

Each check tries the thing itself: libraries are imported, Prefect's server is asked, a kernel runs
on the GPU, a file is written to the data folder. Nothing is changed, downloaded or sent. The exit
status is 1 if a check fails (✗).
"""

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.doctor import prefect
from lasr.doctor.checks import Result, disk, gpu, loads, manifest, packages, weights, writable
from lasr.errors import UserError, one_line
from lasr.storage.config import ManifestAddress
from lasr.terminal.summary import counted
from lasr.weights.locate import weights_folder
from lasr.weights.registry import Kind, Profile

BUG = "report this as a bug of LA-SR"
Check = Callable[[], str | Iterable[Result]]
MARKS = {"ok": "✓", "warning": "!", "wrong": "✗"}
# The weights of a profile that each program loads.
KINDS: dict[str, tuple[Kind, ...]] = {
    "pipeline": ("depth", "clip"),
    "trainer": ("clip", "vgg", "sr"),
    "both": ("depth", "clip", "vgg", "sr"),
}


class DoctorConfig(BaseModel):
    """The flags of `lasr doctor`."""

    profile: Profile = Field("default", description="the models that will run")
    program: Literal["pipeline", "trainer", "both"] = Field(
        "both", description="what will run here"
    )
    data: Path = Field(Path("data"), description="the folder that will be written to")
    photographs: int = Field(1000, ge=1, description="how many photographs will be built")
    manifest: ManifestAddress | None = Field(
        None, description="a manifest to open, as `lasr train` will; also in object storage"
    )
    json_: bool = Field(False, description="print the results as JSON")


def checks(config: DoctorConfig) -> Iterator[tuple[str, Check, str]]:
    """Each check's subject, the function, and what to do if the function raises."""
    kinds, profile, data = KINDS[config.program], config.profile, config.data
    extras = ["pipeline", "trainer"] if config.program == "both" else [config.program]
    reinstall = "run `pip install --force-reinstall "
    yield "Python", lambda: f"{platform.python_version()} at {sys.executable}", BUG
    yield "packages", lambda: packages(extras), "run `pip install .` in the project"
    # torchvision registers its operators at import, which fails beside another PyTorch.
    yield "PyTorch", lambda: loads("torch", "torchvision"), f"{reinstall}torch torchvision`"
    fix = "run `nvidia-smi`, and install the PyTorch build for your driver and GPU (pytorch.org)"
    yield "GPU", gpu, fix
    yield "OpenCV", lambda: loads("cv2"), f"{reinstall}opencv-python-headless`"
    if "pipeline" in extras:
        yield "DuckDB", lambda: loads("pyarrow", "duckdb"), f"{reinstall}pyarrow duckdb`"
        yield "Prefect", prefect.check, BUG
    yield "weights", lambda: weights(profile, kinds), BUG
    yield "disk", lambda: disk(data, profile, kinds, config.photographs), BUG
    if (where := config.manifest) is not None:
        yield "manifest", lambda: manifest(where), BUG
    yield "data folder", lambda: writable(data), BUG
    yield "temporary folder", lambda: writable(Path(tempfile.gettempdir())), BUG
    yield "weights folder", lambda: writable(weights_folder()), BUG


def examine(config: DoctorConfig) -> Iterator[Result]:
    """Run all checks; one that raises does not stop the others."""
    for about, check, fix in checks(config):
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


def run(config: DoctorConfig) -> None:
    """Run all checks and print the results. Raises UserError if one of them fails."""
    results = []
    for result in examine(config):
        results.append(result)
        if not config.json_:
            show(result)
    if config.json_:
        print(json.dumps([asdict(result) for result in results], indent=2))  # ASCII
    failed = [result.about for result in results if result.level == "wrong"]
    if failed:
        raise UserError(
            f"{len(failed)} of {counted(len(results), 'check')} failed:"
            f" {', '.join(dict.fromkeys(failed))}",
            "follow the advice given with each",
        )


def following(config: DoctorConfig) -> list[object]:
    """The next command: the first of the program that was checked."""
    if config.json_:
        return []
    profile = ["--profile", config.profile]
    if config.program == "trainer":
        return ["lasr", "train", "--manifest", config.manifest or "data/patches.parquet", *profile]
    return ["lasr", "build", "--images", "PHOTOGRAPHS", *profile]


main = Command(DoctorConfig, run, name="lasr doctor", about=__doc__, following=following)

if __name__ == "__main__":
    sys.exit(main())
