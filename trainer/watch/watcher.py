"""Looks at a run every `--validate-every` steps: its pictures, its encoders, its best weights."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lasr.errors import writing
from lasr.terminal.summary import counted
from trainer.checkpoint import may_replace, read_settings
from trainer.config import TrainConfig
from trainer.data.dataset import Patches
from trainer.models.save import provenance, write_tensors
from trainer.run_log import RESUME, RunLog
from trainer.watch.encoders import EncoderProbe
from trainer.watch.pictures import Look, held_out, looks_of
from trainer.watch.validation import NO_REFERENCE, Validation, undisturbed

if TYPE_CHECKING:
    from trainer.step import TrainStep

log = logging.getLogger(__name__)

BEST = "best.safetensors"
CONSISTENT = 30.0  # dB: a picture that differs more from its input is no enlargement of it


class Watcher:
    """Measures a run and keeps its best weights. Rank 0 alone has one.

    Create it while the encoders are as the run started, also when it resumes: their drift is
    measured from there. given: the pictures of --validate-on.
    """

    def __init__(
        self, config: TrainConfig, patches: Patches, given: list[Look], train_step: "TrainStep"
    ):
        self.config, self.step = config, train_step
        lr, hr = (held_out(patches, role) for role in ("lr", "hr"))
        sets = {"held_out": list(looks_of(lr)), "given": given}
        context: Callable[[], torch.autocast] = lambda: train_step.autocast  # noqa: E731
        self.validation = Validation(
            {name: looks for name, looks in sets.items() if looks},
            train_step.vgg,
            train_step.device,
            context,
        )
        self.probe = None
        if lr.captions:
            words = config.bad, config.good
            with undisturbed(train_step.encoders):
                self.probe = EncoderProbe(train_step.encoders, lr, hr, words, context)
        log.info(
            "validation every %s: %d LR and %s held out, %s given",
            counted(config.cadence, "step"), len(lr.captions),
            counted(len(hr.captions), "HR patch"), counted(len(given), "picture"),
        )  # fmt: skip

    def __call__(self, step: int, run_log: RunLog) -> None:
        """Log the numbers after `step`, and keep the weights if they are the best so far."""
        network = self.step.sr_network if self.step.average is None else self.step.average
        with undisturbed(network, self.step.encoders, self.step.vgg):
            numbers, made = self.validation(network)
            if self.probe:
                numbers |= self.probe(made.get("held_out", ()))
        start = run_log.validations[0] if run_log.validations else numbers
        found = score(numbers, start)
        before = [line["score"] for line in run_log.validations if "score" in line]
        if found is not None:
            numbers["score"] = found
            if found < min(before, default=float("inf")):
                save_best(network, self.config.folder, step, found)
        run_log.validation(step, numbers)


def score(numbers: dict[str, Any], start: dict[str, Any]) -> float | None:
    """What the best weights have least of; None if there is nothing to judge by.

    With references, the perceptual distance. Without, the mean relative change of NIQE, BRISQUE
    and PIQE since the first validation. None, too, if pictures no longer agree with their inputs
    (CONSISTENT): scores without a reference reward invented texture.

    numbers, start: of this validation and of the first.
    """
    agreement = [value for name, value in numbers.items() if name.startswith("consistency_")]
    if any(value < CONSISTENT for value in agreement):
        return None
    if "perceptual_given" in numbers:
        return float(numbers["perceptual_given"])
    names = [n for n in numbers if n.startswith(NO_REFERENCE) and n in start]
    changes = [(numbers[name] - start[name]) / max(abs(start[name]), 1.0) for name in names]
    return sum(changes) / len(changes) if changes else None


def save_best(network: nn.Module, folder: Path, step: int, found: float) -> None:
    """Replace the best weights of a run. Raises UserError: the disk is full."""
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    about = provenance(read_settings(folder), network)
    about |= {"step": str(step), "score": f"{found:.6g}"}
    with writing(folder / BEST, RESUME, sum(tensor.nbytes for tensor in state.values())):
        write_tensors(folder / BEST, state, about, may_replace(folder))


def best_step(validations: Iterable[dict[str, Any]]) -> int | None:
    """The step whose weights are the best of these validations; None if none has a score."""
    scored = [(line["score"], line["step"]) for line in validations if "score" in line]
    return min(scored)[1] if scored else None
