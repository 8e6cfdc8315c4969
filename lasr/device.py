"""Where networks run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lasr.errors import UserError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]


def pick_device(wanted: Device) -> torch.device:
    """`auto`: a GPU where there is one. Raises UserError where `cuda` is asked for in vain."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch sees no GPU here; check `nvidia-smi` and the installed torch"
            " build, or take --device cpu"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or CPU: what stands beside a score or a time."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
