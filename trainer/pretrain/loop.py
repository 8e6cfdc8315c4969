"""Pretraining, to be read from top to bottom. `trainer.loop.train_steps` repeats the step."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lasr.device import expect_equal_steps, pick_device, pick_precision
from lasr.errors import UserError
from lasr.lock import check_free
from lasr.terminal.summary import counted
from lasr.weights.locate import Located, locate
from schemas.manifest import SCALE
from trainer import checkpoint
from trainer.distributed import World
from trainer.loop import SAMPLES, enough_memory, resume, save_weights, sole_run, train_steps
from trainer.models.load import load_sr
from trainer.models.rrdb import untrained_rrdb
from trainer.plan import BEING_TRAINED, check_compiler, check_steps
from trainer.pretrain.config import PretrainConfig
from trainer.pretrain.photographs import Photographs
from trainer.pretrain.step import PretrainStep
from trainer.pretrain.validation import Validation, read_pairs
from trainer.run_log import RunLog

log = logging.getLogger(__name__)

Found = dict[Path, Path]  # of `find_pictures`

README = """\
# {name}: a run of LA-SR's pretraining

`{command}` resumes this run from its last checkpoint.

- `config.json`: every setting, and the identities of the photographs and the initial weights
- `stats.jsonl`: one line per log step: L1, learning rate, gradient norm, colour shift, seconds per
  step, and the shares of the time spent waiting for data and waiting for the device; and one per
  validation: PSNR on Y in dB of photographs held out and of the pictures of `--validate-on`
- `run.html`: the curves, samples over time and settings on one page, as of the last checkpoint
- `events.out.tfevents.*`: the same and the samples, for `tensorboard --logdir {folder}`
- `samples/`: LR, bicubic and SR of the same patches during training
- `checkpoint.pt`: everything needed to resume exactly; `checkpoint.previous.pt` is the checkpoint
  before it, used if the first is damaged
- `model.safetensors`, `model.pth`: the network after the last step, the `.pth` in the layout of
  Real-ESRGAN and chaiNNer; `model_ema.*`: the moving average of its weights, which was validated
- `lock`, `lock.json`: which process trains here
- `nonfinite.json`: written only if a number is not finite: the step and its crops
"""


@dataclass(frozen=True)
class Result:
    """What a run made: files of weights, the validated ones first, and PSNR on Y by set, in dB."""

    weights: list[Path]
    psnr: dict[str, float]
    bicubic: dict[str, float]


def pretrain(
    config: PretrainConfig, command: str = "the same command", found: Found | None = None
) -> Result:
    """Train a network on photographs as `config` says, or resume the run in its folder.

    command: what the run's README says resumes it. found: the photographs' files. Raises UserError
    for what the user can fix, and KeyboardInterrupt when the run was asked to stop.
    """
    world = World()
    # --- Check: whatever is wrong is reported before a network is loaded --------------------------
    config, device, start = prepare(config)
    with ExitStack() as stack:
        given = read_pairs(config)
        photographs = Photographs(config, found)
        validation = Validation(photographs.held_out, given)
        stack.enter_context(sole_run(config.folder))

        # --- Load the network, then its state after the last checkpoint, if there is one ----------
        expect_equal_steps(device)
        with enough_memory(config, device, world, "loading the network"):
            step = PretrainStep(config, load_start(config, start).to(device))
            identities = {"sr_init": start_identity(config, start)}
            checkpoint.claim_folder(config, photographs.identity, identities)
            done = resume(config, step, world)
        log.info(
            "%s a step, %s on %s, after step %d", counted(config.batch_size, "patch"),
            config.precision, device, done,
        )  # fmt: skip

        # --- Train --------------------------------------------------------------------------------
        run_log = RunLog(config.folder, done, command, README)

        def validate(number: int) -> None:
            run_log.scalars(number, validation(step.average or step.sr_network))

        try:
            with enough_memory(config, device, world, "training"):
                samples = photographs.batch(0, SAMPLES).lr.to(device)
                train_steps(
                    config, step, photographs, samples, world, run_log, None, done, validate,
                    config.validate_every,
                )  # fmt: skip
        finally:
            run_log.close()

        # --- Write the final weights --------------------------------------------------------------
        paths = sorted(save_weights(config.folder, step), key=lambda path: "ema" not in path.name)
        return Result(paths, validation(step.average or step.sr_network), validation.bicubic)


def prepare(config: PretrainConfig) -> tuple[PretrainConfig, torch.device, Located | None]:
    """The settings with a precision, the device, and the weights to start from, if any.

    Raises UserError for what can be told before a photograph is read.
    """
    checkpoint.check_folder(config.folder, config.inputs)
    check_free(config.folder, BEING_TRAINED)
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device, old_gpu="float32")
    config = config.model_copy(update={"precision": precision})
    if config.compile != "off":
        check_compiler(device, config.compile)
    return config, device, locate(config.sr_init, "sr") if config.sr_init else None


def load_start(config: PretrainConfig, start: Located | None) -> nn.Module:
    """The network with its initial weights, on the CPU."""
    return load_sr(start) if start else untrained_rrdb(**config.size, seed=config.seed)


def start_identity(config: PretrainConfig, start: Located | None) -> str:
    """The identity of the initial weights, for config.json."""
    sizes = "-".join(f"{value}{name[0]}" for name, value in config.size.items())
    return start.identity if start else f"interpolating-rrdb-{sizes}@built-in"


def describe(config: PretrainConfig, found: Found | None = None) -> str:
    """What a run would do and what it needs, for --dry-run: the same checks."""
    config, device, start = prepare(config)
    given = read_pairs(config)
    photographs = Photographs(config, found)
    validation = Validation(photographs.held_out, given)
    identity = start_identity(config, start)
    checkpoint.check_settings(config, photographs.identity, {"sr_init": identity})
    state = checkpoint.load(config.folder)
    done = int(state["step"]) if state else 0
    check_steps(config, done)
    network = load_start(config, start)
    parameters = sum(p.numel() for p in network.parameters())
    pixels = sum(p.lr.shape[0] * p.lr.shape[1] for p in photographs.training)
    epochs = config.steps * config.batch_size * config.patch**2 / pixels
    megabytes = sum(p.hr.nbytes + p.lr.nbytes for p in photographs.training) / 2**20
    sets = ", ".join(f"{len(pairs)} {name}" for name, pairs in validation.sets.items())
    return "\n".join(
        [
            f"images:   {counted(len(photographs.training), 'photograph')}, {megabytes:.0f} MB of"
            f" pixels; {photographs.shrunk} shrunk to {config.longest_side} pixels",
            f"validate: {sets.replace('_', ' ') or 'nothing'}; bicubic"
            f" {', '.join(f'{value:.2f} dB' for value in validation.bicubic.values()) or '-'}",
            f"run:      {counted(config.steps, 'step')} of {counted(config.batch_size, 'patch')} of"
            f" {config.patch}x{config.patch}, {epochs:.1f} epochs,"
            f" x{SCALE} on {device}, {config.precision}{f', {done} of them done' * (done > 0)}",
            f"network:  {identity}, {parameters:,} parameters",
            f"folder:   {config.folder}",
        ]
    )


def refuse_several_processes(world_size: str) -> None:
    """Raise UserError under torchrun with more than one process."""
    if world_size not in ("", "1"):
        raise UserError(
            f"lasr pretrain: {world_size} processes, and it trains in one",
            "start it without torchrun",
        )
