"""One episode: disturb, let the commands end, put the world right, and check what must hold."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import BuildConfig
from tests.chaos import disturbances, programs
from tests.chaos.disturbances import CHANGES, DAMAGES, OBSTACLES, Obstacle
from tests.chaos.programs import Program
from tests.chaos.world import (
    QUESTION,
    VARIANTS,
    Reference,
    World,
    digest,
    snapshot,
    statistics,
)

PATIENCE = 300  # seconds in which a command that nothing disturbs ends, on any machine
TEMPORARY = (".tmp", ".old", "publishing", ".partial")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)


class Violation(AssertionError):
    """Something that must hold does not."""


def require(holds: object, what: str) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(what)


@dataclass
class Report:
    """What happened so far."""

    disturbances: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)  # of an undisturbed command
    episodes: int = 0


def prepare(world: World) -> dict[str, float]:
    """The first build, and a training run that is left alone; returns how long each took."""
    check_done(world.build("two"))
    shutil.copytree(world.out, world.training)
    start = time.monotonic()
    check_done(world.build("three"))
    built = time.monotonic()
    check_done(world.train("runs/alone"))
    seconds = {"build": built - start, "train": time.monotonic() - built}
    world.losses, damaged = statistics(world.folder / "runs/alone")
    require(not damaged and world.losses, "a run that was left alone has no statistics")
    world.weights = digest((world.folder / "runs/alone/model.safetensors").read_bytes())
    return seconds


def episode(world: World, rng: random.Random, report: Report, flow: bool = False) -> str:
    """Raises Violation. Returns a line about what happened."""
    said: list[str] = []
    world.damaged.clear()
    before = set(programs.descendants(os.getpid()))
    obstacle = disturb(world, rng, report, said)
    theirs = snapshot(foreign(world))
    variant = rng.choice(sorted(VARIANTS))
    answers = {reference.answer for reference in world.references.values()}

    # --- Commands side by side, and signals at random moments -------------------------------------
    running, variants = [world.build(variant, flow=flow)], {variant}
    if rng.random() < 0.2:
        variants.add(other := rng.choice(sorted(VARIANTS)))
        running.append(world.build(other))
    if rng.random() < 0.6:
        running.append(world.train())
    if rng.random() < 0.5:
        argv = [QUESTION, "--manifest", "data/patches.parquet", "--format", "csv"]
        running.append(world.start("query", *argv))
    if rng.random() < 0.3:
        argv = ["--manifest", "data/patches.parquet", "--out", "report.html"]
        running.append(world.start("report", *argv))
    strike(running, rng, report, world, said)
    for program in running:
        check_end(program, report)
        if program.outcome == "done" and program.name == "query" and not world.damaged:
            answer = "\n".join(line.strip() for line in program.text.splitlines()[1:])
            right = obstacle or answer in answers | {world.reference(v).answer for v in variants}
            require(right, f"{program.log.name}: an answer of no manifest that was published")
    said.append(" ".join(f"{program.name}:{program.outcome}" for program in running))
    check_left_behind(before)

    # --- What a build may say while something is in its way ---------------------------------------
    builds = [program for program in running if program.name in ("build", "flow")]
    if obstacle:
        done = [program for program in builds if program.outcome == "done"]
        require(
            not (obstacle.must_refuse and done), f"a build succeeded in spite of {obstacle.said}"
        )
        if done and os.path.lexists(world.data / "images.parquet"):
            check_accounted(world, done[0])
    require(snapshot(foreign(world)) == theirs, "a file that is not ours was changed")
    if obstacle:
        try:
            obstacle.heal()
        except AssertionError as error:
            raise Violation(str(error)) from error

    # --- The same command again, undisturbed ------------------------------------------------------
    theirs = snapshot(foreign(world))
    settle(world, variant, report)
    check_rows(world, variant)
    require(snapshot(foreign(world)) == theirs, "a file that is not ours was changed")
    check_run(world, rng, report, said)
    check_left_behind(before)
    return "; ".join(said)


def check_left_behind(before: set[int]) -> None:
    """Nothing runs on that an episode started."""
    left = programs.left_behind(before)
    require(not left, f"processes left behind: {left}")


def settle(world: World, variant: str, report: Report) -> None:
    """Build without disturbance, and do what a refusal may ask of a user.

    A file that was damaged beyond recognition may be refused as not ours, and a folder whose
    photographs were all removed may be taken for one that is not mounted.
    """
    verify = ["--verify"] if world.damaged and "verify" in BuildConfig.model_fields else []
    for _ in range(3):
        program = world.build(variant, *verify)
        require(program.wait(PATIENCE), f"{program.log.name}: still running")
        if program.outcome != "refused":
            break
        check_end(program, report)
        wrong = [
            path
            for path in world.damaged
            if f"/{path.name}: " in program.text or f"holds {path.name}, " in program.text
        ]
        hollow = [
            path for path in world.photos.rglob("*") if path.is_dir() and not any(path.iterdir())
        ]
        for path in wrong:
            path.unlink(missing_ok=True)
        if "nothing is there" in program.text:
            for path in hollow:
                path.rmdir()
        elif not wrong:
            break
        report.outcomes["a refusal followed"] += 1
    check_done(program)


def disturb(world: World, rng: random.Random, report: Report, said: list[str]) -> Obstacle | None:
    """What happens before the commands start."""
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice(sorted(CHANGES))
        said.append(CHANGES[name](world, rng))
        report.disturbances[name] += 1
    if rng.random() < 0.5:
        name = rng.choice(sorted(DAMAGES))
        said.append(f"damage: {DAMAGES[name](world, rng)}")
        report.disturbances[name] += 1
    if rng.random() < 0.4:
        name = rng.choice(sorted(OBSTACLES))
        obstacle = OBSTACLES[name](world, rng)
        if obstacle:
            said.append(obstacle.said)
            report.disturbances[name] += 1
        return obstacle
    return None


def strike(
    running: list[Program], rng: random.Random, report: Report, world: World, said: list[str]
) -> None:
    """Send signals while the commands run, and wait until all have ended."""
    begun = time.monotonic()
    plan: list[tuple[float, Program, signal.Signals]] = []
    for program in running:
        # Side by side they take longer than alone, and through Prefect much longer.
        typical = report.seconds.get(program.name, 10 if program.name == "flow" else 1)
        for _ in range(rng.choice((0, 1, 1, 2))):
            seconds = rng.uniform(0, typical * (1 + len(running)) / 2)
            plan.append((seconds, program, rng.choice(SIGNALS)))
    damage_at = rng.uniform(0, report.seconds["build"]) if rng.random() < 0.2 else None
    stopped: list[tuple[float, Program]] = []
    while any(program.process.is_alive() for program in running):
        now = time.monotonic() - begun
        require(now < PATIENCE, f"still running: {[p.log.name for p in running if not p.wait(0)]}")
        for item in [item for item in plan if item[0] <= now and item[1].is_ready]:
            plan.remove(item)
            _, program, number = item
            if program.send(number):
                report.disturbances[number.name] += 1
                if number == signal.SIGSTOP:
                    stopped.append((now + 0.3, program))
        for entry in [entry for entry in stopped if entry[0] <= now]:
            stopped.remove(entry)
            entry[1].send(signal.SIGCONT)
        if damage_at is not None and now >= damage_at:
            damage_at = None
            try:
                said.append(f"damage: {disturbances.damage_build(world, rng)} meanwhile")
                report.disturbances["damage-meanwhile"] += 1
            except OSError:  # the file went away while it was damaged
                pass
        time.sleep(0.01)


def foreign(world: World) -> list[Path]:
    """Files that no command may change."""
    return [
        *world.photos.rglob("*"), *world.data.rglob("theirs*"), *world.training.rglob("*"),
        *(world.folder / "theirs").rglob("*"), world.folder / "words.txt",
        world.data / "thesis.md", world.data / "precious.parquet",
    ]  # fmt: skip


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


def check_done(program: Program) -> None:
    """A command that nothing disturbs succeeds."""
    require(program.wait(PATIENCE), f"{program.log.name}: still running")
    text = program.text
    require(program.outcome == "done", f"{program.log.name}: {program.outcome}: {text[-3000:]}")
    require("Traceback" not in text, f"{program.log.name}: a traceback: {text[-3000:]}")


def check_rows(world: World, variant: str) -> None:
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
    check_accounted(world, None)
    left = [
        path.relative_to(world.folder).as_posix()
        for path in (*world.data.rglob("*"), *world.folder.glob(".*"))
        if any(part in path.name for part in TEMPORARY)
    ]
    require(not left, f"temporary files are left: {left}")


def check_accounted(world: World, program: Program | None) -> None:
    """Every file that could be a photograph is in the catalogue. program: or named by it."""
    import pyarrow.parquet as pq

    paths = pq.read_table(world.data / "images.parquet", columns=["path"])["path"].to_pylist()
    listed = Counter(Path(path).name for path in paths)
    missing = [path for path in world.pictures() if not listed[path.name]]
    if program:
        text = program.text
        missing = [p for p in missing if p.name not in text and p.parent.name not in text]
    names = [path.relative_to(world.photos).as_posix() for path in missing]
    require(not names, f"found and not mentioned in images.parquet: {names}")


def check_run(world: World, rng: random.Random, report: Report, said: list[str]) -> None:
    """Let the training run end now and then; its losses are those of a run left alone."""
    if not (world.run / "config.json").exists() or rng.random() < 0.5:
        return
    program = world.train()
    require(program.wait(PATIENCE), f"{program.log.name}: still running")
    check_end(program, report)
    if program.outcome == "refused":  # only if nothing is left to resume from
        require("remove" in program.text, f"{program.log.name}: {program.text[-2000:]}")
        report.outcomes["run given up"] += 1
    else:
        said.append("run complete")
        lines, _ = statistics(world.run)
        expected = {line["step"]: line for line in world.losses}
        wrong = [line for line in lines if expected.get(line.get("step")) != line]
        require(not wrong, f"losses differ from those of a run left alone: {wrong[:2]}")
        steps = [line["step"] for line in lines]
        require(len(set(steps)) == len(steps), f"steps are repeated in stats.jsonl: {steps}")
        if not world.stats_damaged:
            require(steps == sorted(expected), f"steps are missing in stats.jsonl: {steps}")
        weights = digest((world.run / "model.safetensors").read_bytes())
        require(weights == world.weights, "the network differs from that of a run left alone")
        left = [path.name for path in world.run.rglob("*") if path.name.endswith(".tmp")]
        require(not left, f"temporary files are left in the run: {left}")
    shutil.rmtree(world.run)
    world.stats_damaged = False
