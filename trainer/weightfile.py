"""Files of tensors, written atomically and read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from schemas.files import atomic_path
from schemas.weights import WeightsError

# Where training programs put the network inside their checkpoint. The averaged weights come first:
# they are the ones that are published and used (BasicSR, Real-ESRGAN).
WRAPPERS = ("params_ema", "params", "state_dict")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, by name, on the CPU.

    The kind is told by content, not by suffix. `params_ema`, `params` or `state_dict` are opened,
    in this order, a `module.` prefix is dropped, and what is not a tensor is left out.

    Raises:
        WeightsError: no such file, damaged or incomplete, not a dictionary of tensors, or a pickle
            that would run code (it is not run).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; check the name")
    state: object
    head = b""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{":  # safetensors: a length in 8 bytes, then JSON; no pickle, no zip
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bad bytes raise nearly anything in these readers
        is_pickle = head.startswith((b"PK", b"\x80"))  # in PyTorch's zip, or by itself
        if is_pickle and isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            what = "holds objects that could run code, and was refused without running it"
            todo = "use a file of plain tensors (safetensors, or a saved state_dict)"
        else:
            what = "cannot be read as weights; it is damaged, incomplete or of another kind"
            todo = "fetch it again, and compare its checksum"
        raise WeightsError(f"{path}: {what}; {todo}") from error
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    pairs = state.items() if isinstance(state, dict) else ()
    tensors = {str(k).removeprefix("module."): v for k, v in pairs if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors; give a network's state_dict")
    return tensors


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
