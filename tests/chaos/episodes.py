"""One episode: disturb, let the commands end, put the world right, and check what must hold."""

import contextlib
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass

from pipeline.config import BuildConfig
from tests.chaos import disturbances, programs
from tests.chaos.checks import (
    PATIENCE,
    check_accounted,
    check_done,
    check_end,
    check_foreign,
    check_left_behind,
    check_rows,
    foreign,
)  # fmt: skip
from tests.chaos.disturbances import CHANGES, DAMAGES, OBSTACLES, Obstacle
from tests.chaos.programs import Program
from tests.chaos.report import Report, Violation, require
from tests.chaos.runs import check_run
from tests.chaos.world import QUESTION, VARIANTS, World, digest, snapshot, statistics

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP)


def prepare(world: World) -> dict[str, float]:
    """The first build, and a training run that is left alone; returns how long each took."""
    check_done(world.build("two"))
    for copy in (world.training, world.untouched):
        shutil.copytree(world.out, copy)
    world.training_state = snapshot(world.training.rglob("*"))
    start = time.monotonic()
    check_done(world.build("three"))
    built = time.monotonic()
    world.reference("three")  # what a query of the first episode may read
    trained = time.monotonic()
    check_done(world.train("runs/alone"))
    seconds = {"build": built - start, "train": time.monotonic() - trained}
    world.losses, damaged = statistics(world.folder / "runs/alone")
    require(not damaged and world.losses, "a run that was left alone has no statistics")
    world.weights = digest((world.folder / "runs/alone/model.safetensors").read_bytes())
    return seconds


def episode(world: World, rng: random.Random, report: Report, flow: bool = False) -> str:
    """Raises Violation. Returns a line about what happened. flow: build through Prefect."""
    said: list[str] = []
    world.damaged.clear()
    before = set(programs.descendants(os.getpid()))
    obstacle = disturb(world, rng, report, said, flow)
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
    count_episode(running, flow, obstacle, report)
    strike(running, rng, report, world, said)
    for program in running:
        check_end(program, report)
        if program.outcome == "done" and program.name == "query" and not world.damaged:
            answer = "\n".join(line.strip() for line in program.text.splitlines()[1:])
            right = obstacle or answer in answers | {world.reference(v).answer for v in variants}
            require(right, f"{program.log.name}: an answer of no manifest that was published")
            report.checks["an answer of a manifest that was published"] += not obstacle
    said.append(" ".join(f"{program.name}:{program.outcome}" for program in running))
    check_left_behind(before, report)

    # --- What a build may say while something is in its way ---------------------------------------
    builds = [program for program in running if program.name in ("build", "flow")]
    if obstacle:
        done = [program for program in builds if program.outcome == "done"]
        require(
            not (obstacle.must_refuse and done), f"a build succeeded in spite of {obstacle.said}"
        )
        report.checks["no build in spite of an obstacle"] += obstacle.must_refuse
        if done and os.path.lexists(world.data / "images.parquet"):
            check_accounted(world, done[0], report)
    check_foreign(world, theirs, report)
    if obstacle:
        try:
            obstacle.heal()
        except AssertionError as error:
            raise Violation(str(error)) from error

    # --- The same command again, undisturbed ------------------------------------------------------
    theirs = snapshot(foreign(world))
    settle(world, variant, report, flow)
    check_rows(world, variant, report)
    check_foreign(world, theirs, report)
    check_run(world, rng, report, said)
    check_left_behind(before, report)
    return "; ".join(said)


def count_episode(
    running: list[Program], flow: bool, obstacle: Obstacle | None, report: Report
) -> None:
    """Count an episode under each of its kinds."""
    names = [program.name for program in running]
    kinds = {
        "all": True,
        "a build through Prefect": flow,
        "two builds at once": names.count("build") + flow == 2,
        "training beside the build": "train" in names,
        "a query or a report beside the build": "query" in names or "report" in names,
        "something in the way": obstacle,
    }
    report.episodes.update(kind for kind, is_so in kinds.items() if is_so)


def settle(world: World, variant: str, report: Report, flow: bool) -> None:
    """Build without disturbance, and do what a refusal may ask of a user.

    A file that was damaged beyond recognition may be refused as not ours, and a folder whose
    photographs were all removed may be taken for one that is not mounted.
    """
    verify = ["--verify"] if world.damaged and "verify" in BuildConfig.model_fields else []
    for _ in range(3):
        program = world.build(variant, *verify, flow=flow)
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
        report.asked["damaged files or empty folders removed"] += 1
    check_done(program)
    report.checks["an undisturbed build succeeds"] += 1
    if flow and "temporary database only" in program.text:
        for path in world.prefect.parent.glob(f"{world.prefect.name}*"):
            path.unlink()
        report.asked["Prefect's database removed"] += 1


def disturb(
    world: World, rng: random.Random, report: Report, said: list[str], flow: bool
) -> Obstacle | None:
    """What happens before the commands start."""
    for _ in range(rng.choice((0, 1, 1, 2))):
        name = rng.choice(sorted(CHANGES))
        said.append(CHANGES[name](world, rng))
        report.disturbances[name] += 1
    if rng.random() < 0.5:
        name = rng.choice([name for name in sorted(DAMAGES) if flow or name != "damage-prefect"])
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


@dataclass
class Blow:
    """A signal to a program, or what else hits it, and when."""

    seconds: float
    program: Program
    signal: signal.Signals
    server: bool = False  # to the Prefect server of the build, not to the build itself

    def strike(self, report: Report) -> bool:
        """Whether it hit something."""
        if self.server:
            servers = programs.prefect_servers(self.program)
            for pid in servers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, self.signal)
            report.disturbances["SIGKILL to Prefect's server"] += bool(servers)
            return bool(servers)
        if hit := self.program.send(self.signal):
            report.disturbances[self.signal.name] += 1
        return hit


def strike(
    running: list[Program], rng: random.Random, report: Report, world: World, said: list[str]
) -> None:
    """Send signals while the commands run, and wait until all have ended."""
    begun = time.monotonic()
    plan: list[Blow] = []
    for program in running:
        # Side by side they take longer than alone, and through Prefect much longer.
        typical = report.seconds.get(program.name, 10 if program.name == "flow" else 1)
        longest = typical * (1 + len(running)) / 2
        plan += [
            Blow(rng.uniform(0, longest), program, rng.choice(SIGNALS))
            for _ in range(rng.choice((0, 1, 1, 2)))
        ]
        if program.name == "flow" and rng.random() < 0.3:
            plan.append(Blow(rng.uniform(0, longest), program, signal.SIGKILL, server=True))
    damage_at = rng.uniform(0, report.seconds["build"]) if rng.random() < 0.2 else None
    hurt = rng.choice((disturbances.damage_build, disturbances.damage_training))
    stopped: list[tuple[float, Program]] = []
    while any(program.process.is_alive() for program in running):
        now = time.monotonic() - begun
        require(now < PATIENCE, f"still running: {[p.log.name for p in running if not p.wait(0)]}")
        for blow in [blow for blow in plan if blow.seconds <= now and blow.program.is_ready]:
            plan.remove(blow)
            if blow.strike(report) and blow.signal == signal.SIGSTOP:
                stopped.append((now + 0.3, blow.program))
        for entry in [entry for entry in stopped if entry[0] <= now]:
            stopped.remove(entry)
            entry[1].send(signal.SIGCONT)
        if damage_at is not None and now >= damage_at:
            damage_at = None
            try:
                said.append(f"damage: {hurt(world, rng)} meanwhile")
                report.disturbances[f"{hurt.__name__.replace('_', '-')} meanwhile"] += 1
            except OSError:  # the file went away while it was damaged
                pass
        time.sleep(0.01)
