"""The whole training loop, to be read from top to bottom. One step of it stands in trainer/step.py.

The host launches a step and, while the device computes it, looks at the numbers of the step before:
are they finite, was anybody asked to stop, are they to be logged. Before anything is written that
another step builds on, it looks at all of them.
"""

import logging
import math
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lasr.cli import progress
from lasr.errors import UserError
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.data.dataset import Batch, Patches
from trainer.data.prefetch import Arriving, feed
from trainer.distributed import OwnError, World, joined
from trainer.models.encoders import Encoders, load_encoders
from trainer.models.load import load_sr
from trainer.models.save import save_network, write_tensors
from trainer.models.vgg import load_vgg_named
from trainer.plan import check_compiler, find_weights, open_patches
from trainer.run_log import Record
from trainer.step import Step

log = logging.getLogger(__name__)

SAMPLES = 4  # patches on a sample sheet


@dataclass(frozen=True)
class Launched:
    """A step that the device was told to do: when, and how long was waited for what until then."""

    step: int
    time: float
    waited: dict[str, float]
    numbers: Arriving | None = None


def train(config: TrainConfig, command: str = "the same command") -> list[Path]:
    """Train the SR network (and the encoders) as `config` says; carries on where a run stopped.

    Under torchrun every process calls this. Returns the paths of the final weights. Raises
    UserError for what the user can mend, KeyboardInterrupt after a stop that was asked for.
    """
    with joined(config.device) as (world, device):
        patches = open_patches(config, world.size)
        find_weights(config)  # all that is missing at once, before any is read
        if config.compile != "off":
            check_compiler(device, config.compile)
        torch.backends.cudnn.benchmark = True  # shapes never change
        step = Step(
            config,
            load_sr(config.sr_name).to(device),
            trained_encoders(config, load_encoders(config.clip_name, device)),
            load_vgg_named(config.vgg_name, config.vgg_layers).to(device),
            world,
        )
        world.by_first(lambda: claim(config, patches))
        done = take_up(config, step, world)
        log.info(
            "%d patches a step, %d on each of %d processes, %s on %s, after step %d",
            config.batch_size, config.batch_size // world.size, world.size, config.precision,
            device, done,
        )  # fmt: skip
        record = Record(config.folder, done, command) if world.first else None
        try:
            run(config, step, patches, world, record, done)
        finally:
            if record:
                record.close()
        if not world.first:
            return []
        paths = save_network(step.sr_network, config.folder, "model")
        if step.average is not None:
            paths += save_network(step.average, config.folder, "model_ema")
        return paths


def trained_encoders(config: TrainConfig, encoders: Encoders) -> Encoders:
    """The encoders as another run (`--encoders`) left them. Raises UserError: it left none."""
    if config.encoders is not None:
        state = checkpoint.load(config.encoders)
        if state is None:
            raise UserError(f"--encoders {config.encoders}: no checkpoint; give a run's folder")
        try:
            encoders.load_state_dict(state["encoders"])
        except RuntimeError as error:
            raise UserError(
                f"--encoders {config.encoders}: trained from another CLIP than {config.clip_name};"
                " give the same --clip"
            ) from error
    return encoders


def claim(config: TrainConfig, patches: Patches) -> None:
    """Make the run's folder, or refuse one that holds another run."""
    identities = {field: found.identity for field, found in find_weights(config).items()}
    checkpoint.claim_folder(config, patches.manifest.identity, identities)


def take_up(config: TrainConfig, step: Step, world: World) -> int:
    """Load the run's checkpoint where there is one; how many steps are done."""
    state = checkpoint.load(config.folder)
    done = int(state["step"]) if state else 0
    if state:
        step.load_state(state)
    if world.average(torch.tensor(float(done), device=step.device)).item() != done:
        raise UserError(f"{config.folder}: processes see different checkpoints; share the folder")
    if done > config.steps:
        raise UserError(
            f"{config.folder}: holds a run of {done} steps, --steps {config.steps} would go back;"
            " take more steps or another --out"
        )
    return done


def run(
    config: TrainConfig,
    step: Step,
    patches: Patches,
    world: World,
    record: Record | None,
    done: int,
) -> None:
    """The steps after `done`. Raises UserError: a number is not finite, a patch is unreadable."""
    fixed = patches.batch(0, max(SAMPLES, 2)).lr[:SAMPLES].to(step.device)  # at every interval
    pending: deque[Launched] = deque()  # not looked at yet
    waited = {"data": 0.0, "device": 0.0}  # seconds
    before = Launched(done, time.perf_counter(), dict(waited))  # the last step that was logged

    def look(at: Launched) -> bool:
        """Look at a step's numbers; whether a process was asked to stop by then."""
        nonlocal before
        asked = time.perf_counter()
        assert at.numbers is not None
        values = dict(zip(step.names, at.numbers.read(), strict=True))
        waited["device"] += time.perf_counter() - asked
        if not all(map(math.isfinite, values.values())):
            raise _not_finite(config, at.step, values, patches, record)
        stop = values.pop("stop") > 0
        if at.step % config.log_every == 0 or at.step == config.steps:
            elapsed = at.time - before.time
            for what, seconds in at.waited.items():
                values[f"waiting_for_{what}"] = (seconds - before.waited[what]) / elapsed
            values["seconds_per_step"] = elapsed / (at.step - before.step)
            if record:
                record.scalars(at.step, values)
            bar.set_postfix(total=f"{values['total']:.4f}")
            before = at
        return stop

    if record and done == 0:
        record.samples(0, step.sr_network, fixed)
    batches = feed(
        patches.batches(
            done, config.steps, config.batch_size, config.workers, world.rank, world.size
        ),
        step.texts_of,
        step.device,
    )
    with (
        progress(config.steps, "steps", "step", done, not world.first) as bar,
        asked_to_stop() as stop,
    ):
        for number in range(done + 1, config.steps + 1):
            asked = time.perf_counter()
            batch, tokens = _next(batches, world)
            waited["data"] += time.perf_counter() - asked

            # Some SR networks drop paths at random; so nothing of it has to be in a checkpoint.
            torch.manual_seed(((config.seed << 32) + number * world.size + world.rank) % 2**63)
            numbers = Arriving(step(batch, tokens, stop.asked))
            pending.append(Launched(number, time.perf_counter(), dict(waited), numbers))
            bar.update()

            sampling = number % config.sample_every == 0 or number == config.steps
            saving = number % config.checkpoint_every == 0 or number == config.steps
            keeping = config.weights_every > 0 and number % config.weights_every == 0
            stopping = len(pending) > 1 and look(pending.popleft())
            while pending and (sampling or saving or keeping or stopping):
                stopping |= look(pending.popleft())
            if record and sampling:
                record.samples(number, step.sr_network, fixed)
            if record and keeping:
                save_weights(step, config.folder / "weights" / f"step{number:07}.safetensors")
            if record and (saving or stopping):
                record.flush()
                checkpoint.save(config.folder, number, **step.state())
            if stopping and number < config.steps:
                raise KeyboardInterrupt


def save_weights(step: Step, path: Path) -> None:
    """The SR network as it is now, its moving average where there is one."""
    network = step.sr_network if step.average is None else step.average
    write_tensors(path, {name: tensor.float() for name, tensor in network.state_dict().items()})


def _next(batches: Iterator[tuple[Batch, Tensor]], world: World) -> tuple[Batch, Tensor]:
    try:
        return next(batches)
    except UserError as error:  # a patch that only this process reads
        raise (OwnError(str(error)) if world.size > 1 else error) from error


def _not_finite(
    config: TrainConfig,
    number: int,
    values: dict[str, float],
    patches: Patches,
    record: Record | None,
) -> UserError:
    """Name a step's broken numbers and its patches, here and in nonfinite.json."""
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    batch = patches.batch(number - 1, config.batch_size)  # of all processes
    rows = {"lr": batch.lr_rows, "hr": batch.hr_rows}
    if record:
        record.broken(number, values, patches.manifest.files, rows)
    return UserError(
        f"step {number}: {', '.join(broken)} not finite (manifest rows lr {rows['lr']}, hr"
        f" {rows['hr']}; their ids are in {config.folder / 'nonfinite.json'}); no weight was"
        " changed by it and the last checkpoint is kept: lower --lr or leave these patches out,"
        " with another --out"
    )


class Stop:
    """Whether somebody asked the run to stop."""

    asked = False


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM let the step under way finish, so that a checkpoint can be written."""
    stop = Stop()

    def note(number: int, frame: object) -> None:
        if stop.asked:  # asked twice: at once
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
