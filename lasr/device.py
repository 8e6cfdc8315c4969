"""The device that networks run on."""

from __future__ import annotations

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
