"""Runs of `lasr train` side by side: variants of the method, each for several seeds."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from lasr.cli import progress
from lasr.device import Device
from trainer.config import Precision, TrainConfig

# Options of `lasr train` by variant, beside those that all share.
EQUAL = {"encoder_view": "equal-size"}
GAME = EQUAL | {"sr_as_low_quality": 0.5}
TIED = GAME | {"weight_consistency": 10}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "equal-size": EQUAL,
    "equal-size+sr": GAME,
    "no content": GAME | {"weight_content": 0},
    "no quality": GAME | {"weight_quality": 0},
    "no VGG": GAME | {"weight_vgg": 0},
    "weak quality": GAME | {"weight_quality": 0.05},
    "consistency 1": GAME | {"weight_consistency": 1},
    "consistency 10": TIED,
    "consistency 100": GAME | {"weight_consistency": 100},
    "paper, consistency 10": {"weight_consistency": 10},
    "equal-size, consistency 10": EQUAL | {"weight_consistency": 10},
    "weak quality, consistency 10": TIED | {"weight_quality": 0.05},
    "no quality, consistency 10": TIED | {"weight_quality": 0},
    "slow encoders, consistency 10": TIED | {"lr_encoders": 2e-6},
}
# What a variant is without one of its terms.
ABLATIONS = {
    "no content": {"weight_content": 0},
    "no quality": {"weight_quality": 0},
    "no VGG": {"weight_vgg": 0},
}

Part = Literal["prepare", "train", "score"]
PARTS: list[Part] = ["prepare", "train", "score"]
After = Callable[[TrainConfig], object]  # what to do with a trained network, in its process


def train_all(runs: Sequence[TrainConfig], parallel: int, after: After | None) -> None:
    """Train what is not trained yet, in so many processes. A second call continues."""
    if parallel == 1:
        for run in runs:
            train(run, after)
        return
    # Not forks: a fork of a process that has used a GPU cannot use it.
    context = multiprocessing.get_context("spawn")
    with (
        progress(len(runs), "runs", "run") as bar,
        ProcessPoolExecutor(parallel, mp_context=context) as pool,
    ):
        for done in as_completed([pool.submit(train, run, after) for run in runs]):
            done.result()
            bar.update()


def train(run: TrainConfig, after: After | None) -> None:
    """Train one network in this process, unless that is done; then call `after`."""
    from trainer import loop

    if not is_trained(run.folder):
        loop.train(run)
    if after:
        after(run)


def is_trained(folder: Path) -> bool:
    """Whether a run has ended."""
    return (folder / "model.safetensors").exists()


def settings(
    manifest: Path,
    folder: Path,
    variant: str,
    seed: int,
    options: dict[str, Any],
    device: Device = "auto",
    precision: Precision = "auto",
) -> TrainConfig:
    """The settings of one run. variant: a name for its folder. options: of `lasr train`."""
    options = {"device": device, "precision": precision} | options
    # The benchmarks hold photographs out themselves, and tell none of them to the training.
    return TrainConfig(
        manifest=manifest, out=folder / name_of(variant, seed), seed=seed, split="all", **options
    )


def name_of(variant: str, seed: int) -> str:
    """The name of a run's folder."""
    return f"{variant.replace(',', '').replace(' ', '-')}-{seed}"
