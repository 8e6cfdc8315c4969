"""What a run tells its user: stats.jsonl, TensorBoard, sample sheets, a README; broken numbers."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lasr.errors import UserError
from lasr.files import write_bytes
from lasr.marks import signed
from lasr.ownership import is_ours
from trainer.config import TrainConfig
from trainer.data.dataset import Patches
from trainer.data.prefetch import AsyncNumbers
from trainer.distributed import World
from trainer.sheets import write_comparison
from trainer.step import TrainStep

README = """\
# {name}: a training run of LA-SR

`{command}` resumes this run from its last checkpoint.

- `config.json`: every setting, and the identities of the manifest and the initial weights
- `stats.jsonl`: one line per log step: losses, gradient norms, colour shift, seconds per step, and
  the shares of the time spent waiting for data and waiting for the device
- `events.out.tfevents.*`: the same and the samples, for `tensorboard --logdir {folder}`
- `samples/`: LR, bicubic and SR of the same patches during training
- `checkpoint.pt`: everything needed to resume exactly; `checkpoint.previous.pt` is the checkpoint
  before it, used if the first is damaged
- `model.safetensors`, `model.pth`: the SR network after the last step, the `.pth` in the layout of
  Real-ESRGAN and chaiNNer; with `--ema` also `model_ema.*`, the moving average of its weights
- `nonfinite.json`: written only if a number is not finite: the step and its patches
"""


class RunLog:
    """The log of a run that continues after step `done`. Rank 0 alone has one."""

    def __init__(self, folder: Path, done: int, command: str):
        trim_stats(folder / "stats.jsonl", done)
        readme = folder / "README.md"
        if not os.path.lexists(readme) or is_ours(readme):  # else somebody wrote into it
            text = signed(README.format(name=folder.name, folder=folder, command=command))
            write_bytes(readme, text.encode())
        self.folder = folder
        self._stats = open(folder / "stats.jsonl", "a")  # noqa: SIM115  (closed by close)
        # It writes in its own thread. The queue is long, so a slow disk does not block training.
        self._tensorboard = SummaryWriter(folder, max_queue=1000, purge_step=done + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append a line to stats.jsonl, and the same to TensorBoard."""
        self._stats.write(json.dumps({"step": step} | values) + "\n")
        self._stats.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    @torch.no_grad()
    def samples(self, step: int, network: nn.Module, lr: Tensor) -> None:
        """Write a sheet of the network's output for `lr` (n, 3, h, w) in [0, 1]."""
        training = network.training
        network.eval()
        sr = network.forward(lr)  # not a compiled __call__, which is specialised to one shape
        network.train(training)
        path = self.folder / "samples" / f"step{step:07}.png"
        write_comparison(path, lr, sr)
        sheet = np.asarray(Image.open(path))
        self._tensorboard.add_image("samples", sheet, step, dataformats="HWC")

    def nonfinite(
        self, step: int, values: dict[str, float], parts: Sequence[Path], rows: dict[str, list[int]]
    ) -> None:
        """Write nonfinite.json: a step's numbers, and which patches it was trained on.

        parts: the manifest's files. rows: by role, row numbers in the whole manifest.
        """
        columns = [c for c in ("patch_id", "image_path") if c in pq.read_schema(parts[0]).names]
        table = pq.read_table(list(parts), columns=columns)
        content = {
            "step": step,
            "numbers": {name: repr(value) for name, value in values.items()},
            "patches": {
                role: [{"row": row, **table.slice(row, 1).to_pylist()[0]} for row in of_role]
                for role, of_role in rows.items()
            },
        }
        write_bytes(self.folder / "nonfinite.json", json.dumps(content, indent=2).encode())

    def flush(self) -> None:
        """Make everything written so far durable. Call it before a checkpoint is saved."""
        os.fsync(self._stats.fileno())
        self._tensorboard.flush()

    def close(self) -> None:
        """Write what is buffered and close the files."""
        self._stats.close()
        self._tensorboard.close()


@dataclass(frozen=True)
class PendingStep:
    """A step that was launched and whose numbers have not been read yet."""

    step: int
    launched: float  # host clock, seconds
    waited: dict[str, float]  # seconds that the host has waited until then, by reason
    numbers: AsyncNumbers


class Monitor:
    """Reads the numbers of steps, checks that they are finite, and logs them."""

    def __init__(
        self,
        config: TrainConfig,
        train_step: TrainStep,
        patches: Patches,
        world: World,
        run_log: RunLog | None,
        bar: Any,
        done: int,
    ):
        self.config, self.train_step, self.patches = config, train_step, patches
        self.world, self.run_log, self.bar = world, run_log, bar
        self.waited = {"data": 0.0, "device": 0.0}  # seconds that the host has waited, by reason
        self._logged = done, time.perf_counter(), dict(self.waited)  # step last logged, its times

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """Count the time spent inside as waiting."""
        started = time.perf_counter()
        yield
        self.waited[reason] += time.perf_counter() - started

    def read(self, pending: PendingStep) -> bool:
        """Read a step's numbers and log them if due; whether a rank was asked to stop by then."""
        with self.waiting("device"):
            numbers = pending.numbers.read()
        values = dict(zip(self.train_step.names, numbers, strict=True))
        if not all(map(math.isfinite, values.values())):
            self.world.on_rank_zero(lambda: self._fail(pending.step, values))
        stop = values.pop("stop") > 0
        if pending.step % self.config.log_every == 0 or pending.step == self.config.steps:
            step, launched, waited = self._logged
            elapsed = pending.launched - launched
            for reason, seconds in pending.waited.items():
                values[f"waiting_for_{reason}"] = (seconds - waited[reason]) / elapsed
            values["seconds_per_step"] = elapsed / (pending.step - step)
            if self.run_log:
                self.run_log.scalars(pending.step, values)
            self.bar.set_postfix(total=f"{values['total']:.4f}")
            self._logged = pending.step, pending.launched, pending.waited
        return stop

    def _fail(self, step: int, values: dict[str, float]) -> None:
        """Write nonfinite.json and raise UserError that names the numbers and the patches."""
        names = [name for name, value in values.items() if not math.isfinite(value)]
        batch = self.patches.batch(step - 1, self.config.batch_size)  # of all ranks
        rows = {"lr": batch.lr_rows, "hr": batch.hr_rows}
        if self.run_log:
            self.run_log.nonfinite(step, values, self.patches.manifest.files, rows)
        raise UserError(
            f"step {step}: {', '.join(names)} not finite (manifest rows lr {rows['lr']}, hr"
            f" {rows['hr']}; their ids are in {self.config.folder / 'nonfinite.json'}); the step"
            " changed no weight, and the last checkpoint is intact",
            "lower --lr or leave these patches out, with another --out",
        )


def trim_stats(path: Path, step: int) -> None:
    """Drop the lines of stats.jsonl after `step`, which are written again, and damaged ones."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            pass  # a line that a kill cut short, or that another program wrote
    write_bytes(path, "".join(line + "\n" for line in lines).encode())
