"""Files of tensors, read without running code: safetensors and PyTorch's, told by content."""

import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lasr.weights.locate import WeightsError

# Where training programs put the network inside their checkpoint. The averaged weights come first:
# they are the ones that are published and used (BasicSR, Real-ESRGAN).
WRAPPERS = ("params_ema", "params", "state_dict")

# What stands where weights should be, when a download went wrong.
_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.I)
_LFS = b"version https://git-lfs.github.com/spec"


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, by name, on the CPU.

    `params_ema`, `params` or `state_dict` are opened, in this order, a `module.` prefix is dropped,
    and what is not a tensor is left out.

    Raises:
        WeightsError: as `read_content` does, or not a dictionary of tensors.
    """
    state = read_content(path)
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    pairs = state.items() if isinstance(state, dict) else ()
    tensors = {str(k).removeprefix("module."): v for k, v in pairs if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors; give a network's state_dict")
    return tensors


def read_content(
    path: str | Path, allowed: Iterable[Callable[..., Any] | tuple[Callable[..., Any], str]] = ()
) -> Any:
    """Everything in a safetensors or PyTorch file, tensors on the CPU; the suffix says nothing.

    allowed: what a pickle may call besides PyTorch's own list, as for `torch.serialization`.

    Raises:
        WeightsError: no such file, damaged or incomplete, something else than weights, or a pickle
            that would run code (it is not run).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; check the name")
    head = b""
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if head[8:9] == b"{":  # safetensors: a length in 8 bytes, then JSON; no pickle, no zip
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bad bytes raise nearly anything in these readers
        raise WeightsError(f"{path}: {_why(head, error)}") from error


def _why(head: bytes, error: Exception) -> str:
    """What is wrong with a file that could not be read, and what to do."""
    # PyTorch's own words: "Unsupported global: GLOBAL posix.system was not an allowed global".
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and foreign:
        return (
            f"holds {foreign[1]}, which could run code, and was refused without running it;"
            " use a file of plain tensors (safetensors, or a saved state_dict)"
        )
    if "TorchScript archive" in str(error):
        what, todo = "it is a TorchScript archive, a program", "save the network's state_dict"
    elif not head:
        what, todo = "it is empty", "fetch it again"
    elif head.startswith(_LFS):
        what, todo = "it is a pointer of Git LFS", "run `git lfs pull` where it came from"
    elif _PAGE.match(head):
        what, todo = "it is a web page", "fetch it again, and look at the address"
    else:
        what = "it is damaged, incomplete or of another kind"
        todo = "fetch it again, and compare its checksum"
    return f"cannot be read as weights: {what}; {todo}"
