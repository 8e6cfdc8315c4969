"""Networks written as files of tensors, atomically. `lasr.weights.tensors` reads such files."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from lasr.files import atomic_path


def write_tensors(
    path: str | Path, state: dict[str, Tensor], about: dict[str, str] | None = None
) -> None:
    """Write a network's tensors, atomically: safetensors, or where the suffix is `.pth` a pickle.

    The `.pth` is `{"params_ema": state}`, which Real-ESRGAN's scripts and chaiNNer load as it is.
    about: goes into a safetensors header; a `.pth` has no place for it.
    """
    # Contiguous: weights in channels_last cannot go into safetensors.
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with atomic_path(Path(path)) as temporary:
        if Path(path).suffix == ".pth":
            torch.save({"params_ema": state}, temporary)
        else:
            metadata = {"format": "pt"} | (about or {})
            # Its save_file makes a file that only its owner can read.
            temporary.write_bytes(safetensors.torch.save(state, metadata))


def save_network(network: nn.Module, folder: str | Path, name: str = "model") -> list[Path]:
    """Write a network as `name.safetensors` and as `name.pth`; their paths.

    Key names are the network's own: of an RRDB those of BasicSR, of a network that spandrel made
    those that spandrel reads.
    """
    state = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in network.state_dict().items()
    }
    paths = [Path(folder) / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
    for path in paths:
        write_tensors(path, state)
    return paths
