"""The training run of an episode: it ends at last, and its losses are those it should have."""

import random
import shutil
from pathlib import Path

from schemas.manifest import open_manifest
from tests.chaos.checks import PATIENCE, check_end
from tests.chaos.programs import Program
from tests.chaos.report import Report, require
from tests.chaos.world import World, digest, read_json, statistics


def check_run(world: World, rng: random.Random, report: Report, said: list[str]) -> None:
    """Let the training run end now and then, do what a refusal asks for, and check the result."""
    if rng.random() < 0.5:
        return
    if not (world.run / "config.json").exists():
        if world.training_is_damaged:  # so that no run can begin, perhaps
            world.mend_training()
        return
    program = complete(world, report)
    if program.outcome == "refused" and world.training_is_damaged:
        named = any(x in program.text for x in ("training.parquet", "manifest_identity", "remove"))
        require(named, f"{program.log.name}: does not name the manifest: {program.text[-2000:]}")
        world.mend_training()
        report.asked["the training manifest made again"] += 1
        program = complete(world, report)
    if program.outcome == "refused":
        check_given_up(world, program, report)
    else:
        check_result(world, report)
        said.append("run complete")
    shutil.rmtree(world.run)
    world.stats_damaged = world.manifest_changed = world.order_changed = False
    if world.training_is_damaged and rng.random() < 0.5:  # else the next run begins on it
        world.mend_training()


def complete(world: World, report: Report) -> Program:
    """Start or resume the run, undisturbed."""
    program = world.train()
    require(program.wait(PATIENCE), f"{program.log.name}: still running")
    check_end(program, report)
    return program


def check_given_up(world: World, program: Program, report: Report) -> None:
    """A run on a whole manifest is refused only if nothing is left that it could resume from.

    That is: no checkpoint can be read, or the run has another manifest, because it began or went
    on while that was damaged.
    """
    text = program.text
    began = read_json(world.run / "config.json").get("manifest_identity")
    other = world.manifest_changed and (
        ("manifest_identity" in text and began != open_manifest(world.training).identity)
        or "rows cannot be trained on" in text
    )
    require("remove" in text or other, f"{program.log.name}: refused: {text[-2000:]}")
    report.asked["a run given up"] += 1


def check_result(world: World, report: Report) -> None:
    """Losses and weights are those of a run left alone on the same manifest.

    After a change of the manifest on the way, they are those of the whole one, unless the run says
    which rows it skipped or is a run on fewer parts.
    """
    lines, weights = result(world.run)
    steps = [line["step"] for line in lines]
    require(len(set(steps)) == len(steps), f"steps are repeated in stats.jsonl: {steps}")
    left = [path.name for path in world.run.rglob("*") if path.name.endswith(".tmp")]
    require(not left, f"temporary files are left in the run: {left}")
    report.checks["a run: no step twice, no temporary file"] += 1

    expected, right, against = world.losses, world.weights, "a run left alone"
    if world.manifest_changed:
        began = read_json(world.run / "config.json")["manifest_identity"]
        other = began != open_manifest(world.untouched).identity
        if other or world.order_changed or (world.run / "skipped.jsonl").exists():
            report.outcomes["train done, of several manifests"] += 1
            return
    elif world.training_is_damaged:
        alone = world.folder / "runs" / "alone-damaged"
        program = world.train(f"runs/{alone.name}")
        require(program.wait(PATIENCE), f"{program.log.name}: still running")
        check_end(program, report)
        require(program.outcome == "done", f"{program.log.name}: {program.text[-2000:]}")
        (expected, right), against = result(alone), "a run left alone on the damaged manifest"
        require(skipped(world.run) == skipped(alone), f"skipped rows differ from {against}")
        shutil.rmtree(alone)
    by_step = {line["step"]: line for line in expected}
    wrong = [line for line in lines if by_step.get(line.get("step")) != line]
    require(not wrong, f"losses differ from those of {against}: {wrong[:2]}")
    if not world.stats_damaged:
        require(steps == sorted(by_step), f"steps are missing in stats.jsonl: {steps}")
    require(weights == right, f"the network differs from that of {against}")
    report.checks[f"a run: losses and weights of {against}"] += 1


def result(run: Path) -> tuple[list[dict[str, object]], str]:
    """The statistics of a run that is complete, and a digest of its network."""
    return statistics(run)[0], digest((run / "model.safetensors").read_bytes())


def skipped(run: Path) -> bytes:
    path = run / "skipped.jsonl"
    return path.read_bytes() if path.exists() else b""
