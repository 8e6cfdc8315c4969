"""What a run writes for people to look at: stats.jsonl, TensorBoard, sample sheets, a README."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lasr.files import write_bytes
from trainer import checkpoint
from trainer import sheets as pictures

README = """\
# {name}: a training run of LA-SR

`{command}` carries on where this run stopped.

- `config.json`: every setting, and the identities of the manifest and the first weights
- `stats.jsonl`: a line per log step: losses, gradient norms, colour shift, seconds per step, and
  the shares of the time spent waiting for data and waiting for the device
- `events.out.tfevents.*`: the same, and the samples, for `tensorboard --logdir {folder}`
- `samples/`: LR, bicubic and SR of the same patches as training goes on
- `checkpoint.pt`: all that is needed to carry on exactly; `checkpoint.previous.pt` is the one
  before, which stands in if the first is damaged
- `model.safetensors`, `model.pth`: the SR network after the last step, the `.pth` in the layout of
  Real-ESRGAN and chaiNNer; with `--ema` also `model_ema.*`, the average of its weights
- `nonfinite.json`: only after a number was not finite: the step and its patches
"""


class Record:
    """The log of a run that carries on after step `done`. Only the first process keeps one."""

    def __init__(self, folder: Path, done: int, command: str):
        checkpoint.trim_stats(folder / "stats.jsonl", done)
        text = README.format(name=folder.name, folder=folder, command=command)
        write_bytes(folder / "README.md", text.encode())
        self.folder = folder
        self._stats = open(folder / "stats.jsonl", "a")  # noqa: SIM115  (closed by close)
        # It writes from a thread of its own; a long queue, so that nobody waits for a slow disk.
        self._board = SummaryWriter(folder, max_queue=1000, purge_step=done + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append a line of stats, and the same to TensorBoard."""
        self._stats.write(json.dumps({"step": step} | values) + "\n")
        self._stats.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    @torch.no_grad()
    def samples(self, step: int, network: nn.Module, lr: Tensor) -> None:
        """Write a sheet of what the network makes of `lr` (n, 3, h, w)."""
        training = network.training
        network.eval()
        sr = network.forward(lr)  # not through a compiled __call__, which is made for one shape
        network.train(training)
        path = self.folder / "samples" / f"step{step:07}.png"
        pictures.compare(path, lr, sr)
        self._board.add_image("samples", np.asarray(Image.open(path)), step, dataformats="HWC")

    def broken(
        self, step: int, values: dict[str, float], parts: Sequence[Path], rows: dict[str, list[int]]
    ) -> None:
        """Write nonfinite.json: a step's numbers, and what the manifest says of its patches.

        parts: the manifest's files. rows: by role, counted through all of them.
        """
        columns = [c for c in ("patch_id", "image_path") if c in pq.read_schema(parts[0]).names]
        table = pq.read_table(list(parts), columns=columns)
        found = {
            "step": step,
            "numbers": {name: repr(value) for name, value in values.items()},
            "patches": {
                role: [{"row": row, **table.slice(row, 1).to_pylist()[0]} for row in of_role]
                for role, of_role in rows.items()
            },
        }
        write_bytes(self.folder / "nonfinite.json", json.dumps(found, indent=2).encode())

    def flush(self) -> None:
        """Make durable what was written: before a checkpoint says that it was."""
        os.fsync(self._stats.fileno())
        self._board.flush()

    def close(self) -> None:
        """Write out the rest."""
        self._stats.close()
        self._board.close()
