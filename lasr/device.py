"""The device that networks run on, and the machine's memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lasr.errors import UserError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]


def pick_device(wanted: Device) -> torch.device:
    """The device to use; `auto` is a GPU if PyTorch sees one.

    Raises UserError: `cuda`, and PyTorch sees no GPU.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch sees no GPU here",
            "check `nvidia-smi` and the installed PyTorch build, or use --device cpu",
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or CPU: to note beside a score or a time."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def machine_memory() -> int:
    """Bytes of the machine's memory, or of the container's limit, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return total
