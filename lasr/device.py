"""Where networks run."""

from typing import Literal

import torch

from lasr.errors import UserError

Device = Literal["auto", "cpu", "cuda"]


def pick_device(wanted: Device) -> torch.device:
    """`auto`: a GPU where there is one. Raises UserError where `cuda` is asked for in vain."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch sees no GPU here; check `nvidia-smi` and the installed torch"
            " build, or take --device cpu"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or CPU: what stands beside a score or a time."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
