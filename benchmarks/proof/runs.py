"""Runs of `lasr train` side by side: variants of the method, each for several seeds."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lasr.cli import progress
from lasr.device import Device
from trainer.config import Precision, TrainConfig

# Options of `lasr train` by variant, beside those that all share.
EQUAL = {"encoder_view": "equal-size"}
GAME = EQUAL | {"sr_as_low_quality": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "equal-size": EQUAL,
    "equal-size+sr": GAME,
    "no content": GAME | {"weight_content": 0},
    "no quality": GAME | {"weight_quality": 0},
    "no VGG": GAME | {"weight_vgg": 0},
    "weak quality": GAME | {"weight_quality": 0.05},
}


def train_all(runs: Sequence[TrainConfig], parallel: int = 1) -> None:
    """Train what is not trained yet, in so many processes. A second call continues."""
    waiting = [run for run in runs if not is_trained(run.folder)]
    if parallel == 1:
        for run in waiting:
            train(run)
        return
    # Not forks: a fork of a process that has used a GPU cannot use it.
    context = multiprocessing.get_context("spawn")
    with (
        progress(len(waiting), "runs", "run") as bar,
        ProcessPoolExecutor(parallel, mp_context=context) as pool,
    ):
        for done in as_completed([pool.submit(train, run) for run in waiting]):
            done.result()
            bar.update()


def train(run: TrainConfig) -> None:
    """Train one network in this process."""
    from trainer import loop

    loop.train(run)


def is_trained(folder: Path) -> bool:
    """Whether a run has ended."""
    return (folder / "model.safetensors").exists()


def settings(
    manifest: Path,
    folder: Path,
    variant: str,
    seed: int,
    shared: dict[str, Any],
    device: Device = "auto",
    precision: Precision = "auto",
) -> TrainConfig:
    """The settings of one run. shared: options of all variants, which a variant's own precede."""
    options = {"device": device, "precision": precision} | shared | VARIANTS[variant]
    name = f"{variant.replace(' ', '-')}-{seed}"
    # The benchmarks hold photographs out themselves, and tell none of them to the training.
    return TrainConfig(manifest=manifest, out=folder / name, seed=seed, split="all", **options)
