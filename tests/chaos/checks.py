"""What must hold after the commands of an episode."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from tests.chaos import programs
from tests.chaos.programs import Program
from tests.chaos.report import Report, Violation, require
from tests.chaos.world import Reference, Snapshot, World, snapshot

PATIENCE = 300  # seconds in which a command that nothing disturbs ends, on any machine
TEMPORARY = (".tmp", ".old", "publishing", ".partial")


def check_end(program: Program, report: Report) -> None:
    """A command ends in one of the ways that are promised, and says at most one line of error."""
    report.outcomes[f"{program.name} {program.outcome}"] += 1
    where, text = program.log.name, program.text
    require("crashed" not in program.outcome, f"{where}: {program.outcome}: {text[-2000:]}")
    require("Traceback" not in text, f"{where}: a traceback: {text[-3000:]}")
    require("unexpected" not in text, f"{where}: an unexpected error: {text[-2000:]}")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if program.outcome == "refused":
        require(len(errors) == 1, f"{where}: not one line of error: {text[-2000:]}")
    else:
        require(not errors, f"{where}: {program.outcome}, and yet: {errors}")
    report.checks["a command: known end, at most one line of error"] += 1


def check_done(program: Program) -> None:
    """A command that nothing disturbs succeeds."""
    require(program.wait(PATIENCE), f"{program.log.name}: still running")
    text = program.text
    require(program.outcome == "done", f"{program.log.name}: {program.outcome}: {text[-3000:]}")
    require("Traceback" not in text, f"{program.log.name}: a traceback: {text[-3000:]}")


def check_rows(world: World, variant: str, report: Report) -> None:
    """The manifest is that of an undisturbed build, and complete; nothing temporary is left."""
    try:
        found, expected = Reference.read(world.out), world.reference(variant)
    except Violation:
        raise
    except Exception as error:
        raise Violation(f"the manifest cannot be read: {error!r}") from error
    for name, ours, right in (
        ("rows", found.rows, expected.rows),
        ("the catalogue", found.catalogue, expected.catalogue),
    ):
        if ours != right:
            wrong = [row for row in ours if row not in right]
            missing = [row for row in right if row not in ours]
            raise Violation(
                f"{name} differ from an undisturbed build: {len(wrong)} of {len(ours)} are wrong,"
                f" {len(missing)} of {len(right)} are missing: {[*wrong[:1], *missing[:1]]!r}"[
                    :2000
                ]
            )
    report.checks["rows and catalogue of an undisturbed build"] += 1
    check_accounted(world, None, report)
    left = [
        path.relative_to(world.folder).as_posix()
        for path in (*world.data.rglob("*"), *world.folder.glob(".*"))
        if any(part in path.name for part in TEMPORARY)
    ]
    require(not left, f"temporary files are left: {left}")
    report.checks["no temporary file left by a build"] += 1


def check_accounted(world: World, program: Program | None, report: Report) -> None:
    """Every file that could be a photograph is in the catalogue. program: or named by it."""
    paths = pq.read_table(world.data / "images.parquet", columns=["path"])["path"].to_pylist()
    listed = Counter(Path(path).name for path in paths)
    missing = [path for path in world.pictures() if not listed[path.name]]
    if program:
        text = program.text
        missing = [p for p in missing if p.name not in text and p.parent.name not in text]
    names = [path.relative_to(world.photos).as_posix() for path in missing]
    require(not names, f"found and not mentioned in images.parquet: {names}")
    report.checks["every photograph accounted for"] += 1


def foreign(world: World) -> list[Path]:
    """Files that no command may change."""
    return [
        *world.photos.rglob("*"), *world.data.rglob("theirs*"),
        *(world.folder / "theirs").rglob("*"), world.folder / "words.txt",
        world.data / "thesis.md", world.data / "precious.parquet",
    ]  # fmt: skip


def check_foreign(world: World, before: Snapshot, report: Report) -> None:
    """Files that are not ours are as they were, and so is the manifest that a run reads."""
    require(snapshot(foreign(world)) == before, "a file that is not ours was changed")
    training = snapshot(world.training.rglob("*"))
    require(training == world.training_state, "the manifest of a training run was changed")
    report.checks["files that are not ours: content and time"] += 1


def check_left_behind(before: set[int], report: Report) -> None:
    """Nothing runs on that an episode started."""
    left = programs.left_behind(before)
    require(not left, f"processes left behind: {left}")
    report.checks["no process left behind"] += 1
