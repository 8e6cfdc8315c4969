"""What a run tells its user: stats.jsonl, TensorBoard, sample sheets, a README; broken numbers."""

import io
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn

from lasr.errors import UserError, writing
from lasr.files import write_bytes
from lasr.marks import signed
from lasr.ownership import is_ours
from trainer.checkpoint import RunConfig
from trainer.data.prefetch import AsyncNumbers, Source
from trainer.data.reader import BadRow
from trainer.data.skipped import SkippedRows, trim_lines
from trainer.distributed import World
from trainer.sheets import write_comparison

if TYPE_CHECKING:
    from trainer.watch.tracker import Tracker

log = logging.getLogger(__name__)

README = """\
# {name}: a run of LA-SR

`{command}` resumes this run from its last checkpoint.

- `config.json`: every setting, and the identities of the manifest and the initial weights
- `stats.jsonl`: one line per log step: losses, gradient norms, colour shift, seconds per step, and
  the shares of the time spent waiting for data and waiting for the device
  Lines of the kind `validation` say what the network and the encoders do on held-out patches
- `run.html`: the curves, samples over time and settings on one page, as of the last checkpoint
- `events.out.tfevents.*`: the same and the samples, for `tensorboard --logdir {folder}`
- `samples/`: LR, bicubic and SR of the same patches during training
- `checkpoint.pt`: everything needed to resume exactly; `checkpoint.previous.pt` is the checkpoint
  before it, used if the first is damaged
- `model.safetensors`, `model.pth`: the SR network after the last step, the `.pth` in the layout of
  Real-ESRGAN and chaiNNer; with `--ema` also `model_ema.*`, the moving average of its weights
- `best.safetensors`: the weights (with `--ema` their moving average) that did best in validation
- `encoders.safetensors`: the encoders after the last step, for `--encoders` of another run
- `skipped.jsonl`: written only if a row of the manifest cannot be used: one line for each, with the
  step that met it first, its part, its row there and the reason
- `lock`, `lock.json`: which process trains here
- `nonfinite.json`: written only if a number is not finite: the step and its patches
"""


VALIDATION = "validation"  # the kind of a line
RESUME = "free some disk space and run the same command, which resumes from the last checkpoint"


class RunLog:
    """The log of a run that continues after step `done`. Rank 0 alone has one.

    All methods raise UserError where the disk is full. tracker: gets the same numbers.
    validations: the lines of validations so far.
    """

    def __init__(
        self,
        folder: Path,
        done: int,
        command: str,
        about: str = README,
        tracker: "Tracker | None" = None,
    ):
        self.folder, self._path, self._tracker = folder, folder / "stats.jsonl", tracker
        with writing(self._path, RESUME):
            lines = trim_lines(self._path, done or -1)  # a run that starts again logs step 0 again
            self.validations = [line for line in lines if line.get("kind") == VALIDATION]
            self._stats = open(self._path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115  (closed by close)
        readme = folder / "README.md"
        if not os.path.lexists(readme) or is_ours(readme):  # else somebody wrote into it
            text = signed(about.format(name=folder.name, folder=folder, command=command)).encode()
            with writing(readme, RESUME, len(text)):
                write_bytes(readme, text)
        self._events = EventFile(folder, done)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append a line to stats.jsonl, and the same to TensorBoard."""
        self._append({"step": step} | values)
        self._send(step, values)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Append a line of the kind `validation`, whose names TensorBoard shows in a group."""
        line: dict[str, Any] = {"step": step, "kind": VALIDATION} | values
        self._append(line)
        self.validations.append(line)
        self._send(step, {f"{VALIDATION}/{name}": value for name, value in values.items()})

    def _append(self, values: dict[str, Any]) -> None:
        line = json.dumps(values) + "\n"
        with writing(self._path, RESUME, len(line)):
            self._stats.write(line)
            self._stats.flush()

    def _send(self, step: int, values: dict[str, float]) -> None:
        self._events.scalars(step, values)
        if self._tracker:
            self._tracker.scalars(step, values)

    @torch.no_grad()
    def samples(self, step: int, network: nn.Module, lr: Tensor) -> None:
        """Write a sheet of the network's output for `lr` (n, 3, h, w) in [0, 1]."""
        training = network.training
        network.eval()
        sr = network.forward(lr)  # not a compiled __call__, which is specialised to one shape
        network.train(training)
        path = self.folder / "samples" / f"step{step:07}.png"
        with writing(path, RESUME, sr.nelement()):
            write_comparison(path, lr, sr)
        self._events.picture(step, "samples", path)
        if self._tracker:
            self._tracker.picture(step, "samples", path)

    def nonfinite(
        self, step: int, values: dict[str, float], patches: dict[str, list[dict[str, Any]]]
    ) -> None:
        """Write nonfinite.json: a step's numbers, and which patches it was trained on."""
        content = {
            "step": step,
            "numbers": {name: repr(value) for name, value in values.items()},
            "patches": patches,
        }
        path = self.folder / "nonfinite.json"
        with writing(path, RESUME):
            write_bytes(path, json.dumps(content, indent=2).encode())

    def flush(self) -> None:
        """Make everything written so far durable. Call it before a checkpoint is saved."""
        with writing(self._path, RESUME):
            os.fsync(self._stats.fileno())

    def close(self) -> None:
        """Close the files. What a full disk did not take was reported when it was written."""
        for file in (self._stats, self._events):
            with suppress(OSError):
                file.close()
        if self._tracker:
            self._tracker.close()


class EventFile:
    """A run's events for TensorBoard, of the steps after `done`.

    Not PyTorch's SummaryWriter, whose thread dies with a traceback where the disk is full, and then
    blocks the run. Events come once per log step and are written at once.
    """

    def __init__(self, folder: Path, done: int):
        stem = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self.path = next(p for n in count() if not (p := folder / f"{stem}.{n}").exists())
        with writing(self.path, RESUME):
            self._file = open(self.path, "wb")  # noqa: SIM115  (closed by close)
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        # TensorBoard drops what an earlier process wrote from this step on.
        self._write(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add numbers by name."""
        numbers = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._write(Event(step=step, summary=Summary(value=numbers)))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Add a picture in RGB, as a JPEG: the checksum of its bytes is computed in Python."""
        content = io.BytesIO()
        with Image.open(path) as picture:
            width, height = picture.size
            picture.save(content, "JPEG", quality=95, subsampling=0)
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=content.getvalue()
        )
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = event.SerializeToString()
        with writing(self.path, RESUME, len(record)):
            self._records.write(record)
            self._file.flush()


class Step(Protocol):
    """What the loop repeats: trainer.step.TrainStep, or trainer.pretrain.step.PretrainStep."""

    sr_network: nn.Module
    average: nn.Module | None  # a moving average of its weights
    device: torch.device
    names: list[str]  # of the numbers that the last step returned

    def __call__(self, batch: Any, tokens: Tensor, stop: bool = False, step: int = 1) -> Tensor:
        """Train on a batch; a float32 vector on the device with an entry for each of `names`."""

    def texts_of(self, batch: Any) -> Tensor:
        """The tokens of the texts that a step on `batch` needs."""

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint holds."""

    def load_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue from `state`. Raises KeyError, RuntimeError, …: it is of other networks."""


@dataclass(frozen=True)
class PendingStep:
    """A step that was launched and whose numbers have not been read yet."""

    step: int
    launched: float  # host clock, seconds
    waited: dict[str, float]  # seconds that the host has waited until then, by reason
    numbers: AsyncNumbers
    stop: bool  # whether this rank had been asked to stop
    skipped: list[BadRow]  # rows of this rank's slice that others took the place of


class Monitor:
    """Reads the numbers of steps, checks that they are finite, and logs them."""

    def __init__(
        self,
        config: RunConfig,
        train_step: Step,
        source: Source,
        world: World,
        run_log: RunLog | None,
        skipped: SkippedRows | None,
        bar: Any,
        done: int,
    ):
        self.config, self.train_step, self.source = config, train_step, source
        self.world, self.run_log, self.skipped, self.bar = world, run_log, skipped, bar
        self.waited = {"data": 0.0, "device": 0.0}  # seconds that the host has waited, by reason
        self._logged = done, time.perf_counter(), dict(self.waited)  # step last logged, its times

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """Count the time spent inside as waiting."""
        started = time.perf_counter()
        yield
        self.waited[reason] += time.perf_counter() - started

    def exclude(self, seconds: float) -> None:
        """Count time that was spent on something else than steps as no time of theirs."""
        step, launched, waited = self._logged
        self._logged = step, launched + seconds, waited

    def read(self, pending: PendingStep) -> bool:
        """Read a step's numbers and log them if due; whether the run has to stop now.

        It has to if a rank was asked to stop by then, or if too many rows have been skipped.
        """
        with self.waiting("device"):
            numbers = pending.numbers.read()
        values = dict(zip(self.train_step.names, numbers, strict=True))
        if not all(map(math.isfinite, values.values())):
            self.world.on_rank_zero(lambda: self._fail(pending.step, values))
        stop = False
        if values.pop("stop") > 0:  # the mean over ranks: all of them read the same number here
            news = self.world.exchange((pending.stop, pending.skipped))
            stop = any(asked for asked, _ in news)
            if self.skipped:
                self.skipped.add(pending.step, [row for _, rows in news for row in rows])
        if pending.step % self.config.log_every == 0 or pending.step == self.config.steps:
            step, launched, waited = self._logged
            elapsed = pending.launched - launched
            for reason, seconds in pending.waited.items():
                values[f"waiting_for_{reason}"] = (seconds - waited[reason]) / elapsed
            values["seconds_per_step"] = elapsed / (pending.step - step)
            if self.run_log:
                self.run_log.scalars(pending.step, values)
            loss = "total" if "total" in values else "l1"
            self.bar.set_postfix({loss: f"{values[loss]:.4f}"})
            self._logged = pending.step, pending.launched, pending.waited
        return stop or (self.skipped is not None and self.skipped.too_many)

    def _fail(self, step: int, values: dict[str, float]) -> None:
        """Write nonfinite.json and raise UserError that names the numbers and the patches."""
        names = [name for name, value in values.items() if not math.isfinite(value)]
        batch = self.source.batch(step - 1, self.config.batch_size)  # of all ranks
        if self.run_log:
            self.run_log.nonfinite(step, values, self.source.described(batch))
        raise UserError(
            f"step {step}: {', '.join(names)} not finite ({self.source.named(batch)}; their"
            f" ids are in {self.config.folder / 'nonfinite.json'}); the step changed no weight, and"
            " the last checkpoint is intact",
            "lower --lr or leave these patches out, with another --out",
        )
