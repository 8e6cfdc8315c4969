"""The training loop, to be read from top to bottom. One step of it is in trainer/step.py.

Pretraining (trainer/pretrain/loop.py) runs the same `train_steps` with another step.

The host launches a step and, while the device computes it, reads the numbers of the step before:
are they finite, was the run asked to stop, are they due to be logged. Before anything is written
that a later step builds on, it reads all of them.
"""

import functools
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lasr.cli import progress
from lasr.device import expect_equal_steps, pick_precision
from lasr.errors import UserError, is_out_of_memory, one_line, writing
from lasr.lock import sole_writer
from lasr.storage.retry import give_up
from lasr.terminal.summary import counted
from trainer import checkpoint
from trainer.checkpoint import RunConfig
from trainer.config import TrainConfig
from trainer.data.dataset import Patches
from trainer.data.prefetch import AsyncNumbers, Source, prefetch
from trainer.data.skipped import NAME, SkippedRows, read_skipped, trim_lines
from trainer.distributed import World, process_group
from trainer.models.load import load_sr
from trainer.models.save import provenance, save_network, write_tensors
from trainer.plan import (
    BEING_TRAINED,
    RunWeights,
    check_compiler,
    check_steps,
    check_watching,
    find_weights,
    open_patches,
)
from trainer.run_log import RESUME, Monitor, PendingStep, RunLog, Step
from trainer.watch.page import write_page
from trainer.watch.pictures import Look, is_watched
from trainer.watch.tracker import Tracker

if TYPE_CHECKING:
    from trainer.step import TrainStep

log = logging.getLogger(__name__)

SAMPLES = 4  # patches on a sample sheet

Validate = Callable[[int], None]  # after a step; logs what it finds


def train(config: TrainConfig, command: str = "the same command") -> list[Path]:
    """Train the SR network (and the encoders) as `config` says, or resume the run in its folder.

    Under torchrun every rank calls this. command: what the run's README says resumes it. Returns
    the paths of the final weights, on rank 0. Raises UserError for what the user can fix, and
    KeyboardInterrupt when the run was asked to stop.
    """
    with process_group(config.device) as (world, device), ExitStack() as stack:
        asked = config.precision
        precision = world.on_all_ranks(lambda: pick_precision(asked, device, old_gpu="float16"))
        config = config.model_copy(update={"precision": precision})
        started = config
        config = world.on_all_ranks(lambda: checkpoint.as_started(started))

        # --- Check: whatever is wrong is reported before a network is loaded ----------------------
        patches = world.on_all_ranks(lambda: open_patches(config, world.size))
        weights = world.on_all_ranks(lambda: find_weights(config))
        if config.compile != "off":
            world.on_all_ranks(lambda: check_compiler(device, config.compile))
        given: list[Look] = []
        world.on_rank_zero(lambda: given.extend(check_watching(config, patches)))

        world.on_rank_zero(lambda: stack.enter_context(sole_run(config.folder)))

        # --- Load the networks, then their state after the last checkpoint, if there is one -------
        expect_equal_steps(device)
        with enough_memory(config, device, world, "loading the networks"):
            train_step = world.on_all_ranks(lambda: load_step(config, weights, device, world))
            world.on_rank_zero(lambda: claim(config, patches, weights))
            watched = is_watched(patches, config)
            if watched and world.is_main:  # the encoders are still as the run started
                from trainer.watch.watcher import Watcher  # loads open_clip

                watcher = Watcher(config, patches, given, train_step)
            done = resume(config, train_step, world)
        log.info(
            "%s a step, %d on each of %s, %s on %s, after step %d",
            counted(config.batch_size, "patch"), config.batch_size // world.size,
            counted(world.size, "process"), config.precision, device, done,
        )  # fmt: skip

        # --- Train --------------------------------------------------------------------------------
        skipped = open_skipped(config, patches, world, done)
        run_log = start_log(config, done, command) if world.is_main else None
        validate = functools.partial(watcher, run_log=run_log) if watched and run_log else None
        try:
            with enough_memory(config, device, world, "training"):
                samples = first_patches(patches, world).to(device)  # the same on every sheet
                train_steps(
                    config, train_step, patches, samples, world, run_log, skipped, done, validate,
                    config.cadence if watched else 0,
                )  # fmt: skip
        finally:
            if run_log:
                run_log.close()
        say_traffic(patches, world)

        # --- Write the final weights; the other ranks wait, so that they learn of an error --------
        paths: list[Path] = []
        world.on_rank_zero(lambda: paths.extend(save_weights(config.folder, train_step)))
        world.on_rank_zero(lambda: save_encoders(config, train_step))
        return paths


def say_traffic(patches: Patches, world: World) -> None:
    """Log what each rank fetched of a manifest in storage."""
    fetched = world.exchange(patches.fetched)
    if any(fetched):
        said = ", ".join(f"{size / 1e6:,.0f} MB" for size in fetched)
        log.info("fetched from storage, by rank: %s", said)


def first_patches(patches: Patches, world: World) -> Tensor:
    """The first LR patches in the order of training, on rank 0, out of its own shard."""
    first: list[Tensor] = []
    size = SAMPLES * patches.shards
    world.on_rank_zero(lambda: first.append(patches.batch(0, size, 0, patches.shards).lr))
    return first[0] if first else torch.empty(0)


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder. Raises UserError: another run holds it."""
    with ExitStack() as stack:
        with writing(folder, RESUME):
            stack.enter_context(sole_writer(folder, BEING_TRAINED))
        yield


def save_weights(folder: Path, train_step: Step) -> list[Path]:
    """Write the trained network, and its moving average if there is one. Raises UserError."""
    networks = {"model": train_step.sr_network, "model_ema": train_step.average}
    is_ours = checkpoint.may_replace(folder)
    settings = checkpoint.read_settings(folder)
    paths = []
    for name, network in networks.items():
        if network is not None:
            needed = 2 * sum(p.nbytes for p in network.parameters())  # two files
            with writing(folder / f"{name}.safetensors", RESUME, needed):
                about = provenance(settings, network)
                paths += save_network(network, folder, name, is_ours, about)
    return paths


def save_encoders(config: TrainConfig, train_step: "TrainStep") -> None:
    """Write the encoders of a finished run, if it trained them. Raises UserError."""
    if not config.freeze_encoders:
        path, state = config.folder / checkpoint.ENCODERS, train_step.encoders.state_dict()
        is_ours = checkpoint.may_replace(config.folder)
        with writing(path, RESUME, sum(tensor.nbytes for tensor in state.values())):
            write_tensors(path, state, is_ours=is_ours)


def start_log(config: TrainConfig, done: int, command: str) -> RunLog:
    """The log of a run, with Weights & Biases if asked. Raises UserError: that does not start."""
    tracker = Tracker(config.folder) if config.wandb else None
    return RunLog(config.folder, done, command, tracker=tracker)


def open_skipped(config: TrainConfig, patches: Patches, world: World, done: int) -> SkippedRows:
    """The rows that the run has skipped until step `done`. Raises UserError: they are too many."""
    path = config.folder / NAME if world.is_main else None

    def read() -> dict[int, str]:
        if path is None:
            return {}
        with writing(path, RESUME):
            trim_lines(path, done)
        return read_skipped(config.folder, done)

    known = world.exchange(world.on_all_ranks(read))[0]
    skipped = SkippedRows(patches, config.max_skipped, known, path)
    if skipped.too_many:
        world.on_all_ranks(skipped.refuse)
    return skipped


@contextmanager
def enough_memory(
    config: RunConfig, device: torch.device, world: World, doing: str
) -> Iterator[None]:
    """Turn an error of memory into a UserError that says what to lower."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        memory = "the GPU" if device.type == "cuda" else "this machine"
        lower = []
        if isinstance(config, TrainConfig) and config.batch_size > config.accumulate:
            lower.append(f"pass --accumulate {2 * config.accumulate}")
        if config.batch_size > max(2, world.size):
            lower.append(f"lower --batch-size ({config.batch_size} now)")
        if device.type == "cuda" and config.precision in ("float32", "tf32"):
            lower.append("pass --precision bfloat16")
        if config.ema:
            lower.append("omit --ema")
        if not lower:
            lower.append("close other programs, or train on a device with more memory")
        raise UserError(
            f"{doing}: {memory} is out of memory ({one_line(error, 100)})",
            f"{' or '.join(lower)}, with another --out",
        ) from error


def claim(config: TrainConfig, patches: Patches, weights: RunWeights) -> None:
    """Make the folder this run's own. Raises UserError: it holds another run."""
    manifest = patches.manifest
    checkpoint.claim_folder(config, manifest.identity, weights.identities, manifest.former_identity)


def load_step(
    config: TrainConfig, weights: RunWeights, device: torch.device, world: World
) -> "TrainStep":
    """The training step with the run's initial weights, on `device`. Raises UserError."""
    # Here, because open_clip takes seconds to import, and pretraining needs none of them.
    from trainer.models.encoders import load_encoders
    from trainer.models.vgg import load_vgg
    from trainer.step import TrainStep

    sr_network = load_sr(weights.sr).to(device)
    encoders = load_encoders(weights.clip, device)
    if config.encoders is not None:
        checkpoint.load_trained_encoders(config.encoders, encoders, weights.clip.name)
    vgg = load_vgg(weights.vgg, config.vgg_layers).to(device)
    return TrainStep(config, sr_network, encoders, vgg, world)


def resume(config: RunConfig, train_step: Step, world: World) -> int:
    """Load the run's checkpoint, if there is one; the number of finished steps.

    Raises UserError: the checkpoint is not of this run, or is beyond `--steps`.
    """

    def load() -> int:
        state = checkpoint.load(config.folder)
        if state is None:
            return 0
        try:
            train_step.load_state(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{config.folder}: the checkpoint is of another network ({one_line(error, 100)})",
                "choose another --out",
            ) from error
        return int(state["step"])

    done = world.on_all_ranks(load)
    steps = world.exchange(done)

    def check() -> None:
        if len(set(steps)) > 1:
            raise UserError(
                f"{config.folder}: ranks read checkpoints of different steps {steps}",
                "put the folder where all machines see the same files",
            )
        check_steps(config, done)

    world.on_all_ranks(check)
    return done


def train_steps(
    config: RunConfig,
    train_step: Step,
    source: Source,
    samples: Tensor,
    world: World,
    run_log: RunLog | None,
    skipped: SkippedRows | None,
    done: int,
    validate: Validate | None = None,
    validate_every: int = 0,
) -> None:
    """Run the steps after `done`.

    samples: LR pictures on the device, for the sample sheets. skipped: None if the source has no
    bad rows. validate: called on rank 0 at step 0, every `validate_every` steps, which is the same
    on all ranks, and after the last one; never if that is 0.

    Raises UserError (a number is not finite, too many patches are unreadable, memory or the disk is
    full) or KeyboardInterrupt.
    """
    if run_log and done == 0:
        run_log.samples(0, train_step.sr_network, samples)
        if validate and validate_every:
            validate(0)
    batches = prefetch(
        source.batches(
            done, config.steps, config.batch_size, config.workers, world.rank, world.size
        ),
        train_step.texts_of,
        train_step.device,
    )
    pending: deque[PendingStep] = deque()
    with (
        progress(config.steps, "steps", "step", done, not world.is_main) as bar,
        graceful_shutdown() as shutdown,
    ):
        monitor = Monitor(config, train_step, source, world, run_log, skipped, bar, done)
        for step in range(done + 1, config.steps + 1):
            # --- Launch this step; the host does not wait for the device --------------------------
            with enough_memory(config, train_step.device, world, f"step {step}"):
                with monitor.waiting("data"):
                    batch, tokens = next(batches)
                # Networks that drop paths draw from this seed: checkpoints need no RNG state.
                torch.manual_seed(((config.seed << 32) + step * world.size + world.rank) % 2**63)
                stop = shutdown.requested
                # Ranks that skipped rows set the flag, too: the monitor then asks all of them why.
                numbers = AsyncNumbers(train_step(batch, tokens, stop or bool(batch.skipped), step))
            launched, waited = time.perf_counter(), dict(monitor.waited)
            pending.append(PendingStep(step, launched, waited, numbers, stop, batch.skipped))
            bar.update()

            # --- Read the step before, or all steps before something is written -------------------
            last = step == config.steps
            sample = last or step % config.sample_every == 0
            save = last or step % config.checkpoint_every == 0
            snapshot = config.weights_every > 0 and step % config.weights_every == 0
            measure = validate_every > 0 and (last or step % validate_every == 0)
            stop = False
            write = sample or save or snapshot or measure
            while len(pending) > 1 or (pending and (write or stop)):
                stop |= monitor.read(pending.popleft())

            # --- Write, on rank 0 -----------------------------------------------------------------
            if run_log and sample:
                run_log.samples(step, train_step.sr_network, samples)
            if run_log and snapshot:
                save_snapshot(train_step, config.folder / "weights" / f"step{step:07}.safetensors")
            if validate and measure:
                began = time.perf_counter()
                validate(step)
                monitor.exclude(time.perf_counter() - began)
            if run_log and (save or stop):
                run_log.flush()
                checkpoint.save(config.folder, step, **train_step.state())
                write_page(config.folder)
            if skipped and skipped.too_many and not last:
                world.on_all_ranks(skipped.refuse)
            if stop and not last:
                raise KeyboardInterrupt


def save_snapshot(train_step: Step, path: Path) -> None:
    """Write the weights of the SR network now, or their moving average if there is one.

    path: in the run's subfolder `weights`.
    """
    network = train_step.sr_network if train_step.average is None else train_step.average
    state = {name: tensor.float() for name, tensor in network.state_dict().items()}
    is_ours = checkpoint.may_replace(path.parent.parent)
    with writing(path, RESUME, sum(tensor.nbytes for tensor in state.values())):
        write_tensors(path, state, is_ours=is_ours)


class GracefulShutdown:
    """Whether the run was asked to stop."""

    requested = False


@contextmanager
def graceful_shutdown() -> Iterator[GracefulShutdown]:
    """Note the first Ctrl-C or SIGTERM, so that the step finishes and a checkpoint is written.

    The second one raises KeyboardInterrupt at once.
    """
    shutdown = GracefulShutdown()

    def note(number: int, frame: FrameType | None) -> None:
        if shutdown.requested:
            give_up()  # threads that wait for storage
            raise KeyboardInterrupt
        shutdown.requested = True

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone may handle signals
        before = {}
    try:
        yield shutdown
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
