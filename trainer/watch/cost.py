"""What a run will take: a few measured steps of it, and what it will write. Nothing is written."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lasr.device import expect_equal_steps
from lasr.errors import in_bytes
from lasr.system import calls
from lasr.terminal.summary import counted, duration
from schemas.manifest import PATCH_SIZE, SCALE
from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.loop import enough_memory, load_step
from trainer.plan import described, plan
from trainer.watch.pictures import is_watched

if TYPE_CHECKING:
    from trainer.data.dataset import Patches
    from trainer.step import TrainStep

WARM_UP, MEASURED = 4, 5  # steps; a CUDA graph is captured before the fourth
PATIENCE = 60.0  # seconds, after which no further step is measured
SHEET = 4 * 3 * (SCALE * PATCH_SIZE["lr"]) ** 2 * 3  # pixels of a sample sheet as bytes, at most
PACKED = 0.6  # of them in a PNG of photographs, about
_ALONE = " as one of several processes, without their exchange"


@dataclass(frozen=True)
class Disk:
    """What a run will have written at its end, in bytes."""

    checkpoints: int  # two
    weights: int  # the trained networks, the best one, snapshots
    samples: int

    @property
    def total(self) -> int:
        """All of it, and one more checkpoint: a new one is whole before the oldest goes."""
        return self.checkpoints * 3 // 2 + self.weights + self.samples


def measure(step: "TrainStep", patches: "Patches", processes: int) -> tuple[float, int]:
    """Seconds per step on this machine, and bytes of memory at its peak.

    Memory is the device's on a GPU, and this process's on a CPU. The networks are changed, nothing
    is saved. On one of several processes its slice is measured, without what they exchange.
    """
    config, device = step.config, step.device
    size = max(config.batch_size // processes, 2)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began, seconds = time.perf_counter(), []
    for number in range(WARM_UP + MEASURED):
        batch = patches.batch(number, size)
        tokens = step.texts_of(batch)
        started = time.perf_counter()
        step(batch, tokens).tolist()  # waits for the device
        seconds.append(time.perf_counter() - started)
        if time.perf_counter() - began > PATIENCE:
            break
    measured = sorted(seconds[WARM_UP:] or seconds[1:] or seconds)
    return measured[len(measured) // 2], peak_memory(device)


def peak_memory(device: torch.device) -> int:
    """The most memory so far, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return calls.peak_memory()


def disk(config: TrainConfig, step: "TrainStep", validated: bool) -> Disk:
    """What a run will write, from the sizes of its networks."""
    sr, encoders = (_bytes(network.state_dict()) for network in (step.sr_network, step.encoders))
    trained = sum(p.nbytes for p in (*step.sr_parameters, *step.encoder_parameters))
    average = _bytes(step.average.state_dict()) if step.average is not None else 0
    snapshots = config.steps // config.weights_every if config.weights_every else 0
    files = 2 * sr + 2 * average + sr * (validated + snapshots)
    if not config.freeze_encoders:
        files += encoders
    sheets = config.steps // config.sample_every + 2
    return Disk(
        2 * (sr + encoders + average + 2 * trained), files, round(2 * sheets * PACKED * SHEET)
    )  # samples are in the events for TensorBoard, too


def dry_run(config: TrainConfig, processes: int = 1) -> str:
    """What a run would do, and what a few steps of it take. Raises UserError."""
    checked = plan(config, processes)
    config, device, patches = checked.config, checked.device, checked.patches
    expect_equal_steps(device)  # as `train`
    with enough_memory(config, device, World(), "measuring steps"):
        step = load_step(config, checked.weights, device, World())
        seconds, memory = measure(step, patches, processes)
    needed = disk(config, step, is_watched(patches, config))
    left = config.steps - checked.done
    return "\n".join(
        [
            *described(checked, processes),
            f"time:     {duration(left * seconds)} for {counted(left, 'step')} of {seconds:.3g} s,"
            f" measured here{_ALONE if processes > 1 else ''}; reading patches and validation come"
            " on top",
            _memory_line(memory, device),
            _disk_line(needed, config.folder),
        ]
    )


def _memory_line(memory: int, device: torch.device) -> str:
    if device.type == "cpu":
        return f"memory:   {in_bytes(memory)} of this process at its peak"
    total = torch.cuda.get_device_properties(device).total_memory
    return f"memory:   {in_bytes(memory)} of the GPU's {in_bytes(total)} at its peak"


def _disk_line(needed: Disk, folder: Path) -> str:
    free = shutil.disk_usage(_existing(folder)).free
    return (
        f"disk:     {in_bytes(needed.total)}: two checkpoints of"
        f" {in_bytes(needed.checkpoints / 2)} and room for a third, weights"
        f" {in_bytes(needed.weights)}, samples about {in_bytes(needed.samples)};"
        f" {in_bytes(free)} are free{', NOT ENOUGH' if free < needed.total else ''}"
    )


def _bytes(state: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
