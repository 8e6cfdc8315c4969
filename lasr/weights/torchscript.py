"""TorchScript archives, read without running them: OpenAI published its CLIPs as such.

An archive is a zip of a tree of modules (`data.pkl`), their tensors (`data/N`) and their program
(`code/`). `torch.jit.load` compiles that program and runs what classes do as they are loaded
(`__setstate__`), and TorchScript can write files (`aten::save`): a crafted archive could overwrite
any file of the user's. Here the tree is unpickled with nothing allowed but tensors and attributes
by name, and the program is read as the text it is.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lasr.weights.locate import WeightsError

_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


@dataclass(frozen=True)
class Archive:
    """What is in a TorchScript archive: tensors by name, as a state_dict has them, and its text."""

    tensors: dict[str, Tensor]
    code: str


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with the constants of a program in it."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> Archive:
    """The tensors and the text of an archive, on the CPU; nothing in it is run.

    Raises WeightsError: damaged, or its tree asks for more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            (root,) = {name.split("/")[0] for name in names}
            tree = _Tree(archive, root).load()
            code = [archive.read(n).decode() for n in names if n.endswith(".py")]
        if not isinstance(tree, _Module):
            raise pickle.UnpicklingError("no module")
        return Archive(_flat(tree, ""), "\n".join(code))
    except _Refused as error:
        raise WeightsError(
            f"{path}: asks for {error}, which could run code, and was refused without running it;"
            " fetch it again from its publisher"
        ) from error
    except Exception as error:  # bad bytes raise nearly anything in these readers
        raise WeightsError(
            f"{path}: cannot be read as a TorchScript archive: it is damaged or incomplete;"
            " fetch it again, and compare its checksum"
        ) from error


class _Refused(Exception):
    """A name that is neither a tensor's nor a module's."""


class _Module:
    """Any class of the archive: its attributes and nothing of what it does."""

    attributes: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Tree(pickle.Unpickler):
    """The tree of modules. Its pickle can call only what `find_class` hands out."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch.jit._pickle":  # lists with the type of what is in them
            return self._first
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype, count=count)
        return self._storages[key]

    def _tensor(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> Tensor:
        return storage.as_strided(size, stride, offset)  # raises where it would leave the storage

    def _first(self, value: Any, *_: Any) -> Any:
        return value


def _flat(module: _Module, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            tensors |= _flat(value, f"{prefix}{name}.")
    return tensors
