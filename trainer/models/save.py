"""Write networks as files of tensors, which `lasr.weights.tensors` reads."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

import lasr
from lasr.files import IsOurs, atomic_path
from lasr.marks import KEY
from lasr.ownership import is_ours


def write_tensors(
    path: str | Path,
    state: dict[str, Tensor],
    about: dict[str, str] | None = None,
    is_ours: IsOurs | None = is_ours,
) -> None:
    """Write a network's tensors atomically: safetensors, or a pickle if the suffix is `.pth`.

    A `.pth` is `{"params_ema": state}`, which Real-ESRGAN's scripts and chaiNNer load. about:
    metadata for the header of safetensors; a `.pth` has none. is_ours: whether a file at `path` may
    be replaced; None: any.
    """
    # Contiguous: safetensors cannot store weights in channels_last.
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with atomic_path(Path(path), is_ours) as temporary:
        if Path(path).suffix == ".pth":
            torch.save({"params_ema": state, KEY: lasr.__version__}, temporary)
        else:
            metadata = {"format": "pt", KEY: lasr.__version__} | (about or {})
            # Not save_file, which creates a file that only its owner can read.
            temporary.write_bytes(safetensors.torch.save(state, metadata))


def save_network(
    network: nn.Module,
    folder: str | Path,
    name: str = "model",
    is_ours: IsOurs | None = is_ours,
    about: dict[str, str] | None = None,
) -> list[Path]:
    """Write a network as `name.safetensors` and `name.pth`; returns their paths.

    about: metadata for the header of the first (`trainer.models.provenance`).

    Floating-point tensors are written in float32 under the network's own key names: BasicSR's for
    an RRDB, those that spandrel reads for a network that spandrel built.
    """
    state = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in network.state_dict().items()
    }
    paths = [Path(folder) / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
    for path in paths:
        write_tensors(path, state, about, is_ours)
    return paths
