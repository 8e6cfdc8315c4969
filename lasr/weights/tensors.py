"""Read safetensors and PyTorch files without running code; content decides, not the suffix.

An archive of `torch.save` is a zip file. PyTorch's reader ignores the checksums that its writer
stores, and inflates whatever an archive holds, so sizes and bytes are checked here first.
"""

import hashlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lasr.weights.locate import WeightsError, fetch_command
from schemas.digest import BLANK, MARK, Damaged

# Keys under which training programs store the network in a checkpoint. The averaged weights come
# first: they are the published ones (BasicSR, Real-ESRGAN).
WRAPPERS = ("params_ema", "params", "state_dict")

# Contents of a file whose download went wrong.
_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.I)
_LFS = b"version https://git-lfs.github.com/spec"


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, by name, on the CPU.

    Takes the dictionary under `params_ema`, `params` or `state_dict`, whichever exists first, drops
    a `module.` prefix from names, and ignores values that are not tensors.

    Raises:
        WeightsError: as `read_content`, or there are no named tensors.
    """
    state = read_content(path)
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    pairs = state.items() if isinstance(state, dict) else ()
    tensors = {str(k).removeprefix("module."): v for k, v in pairs if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors", "give a network's state_dict")
    return tensors


def read_content(
    path: str | Path, allowed: Iterable[Callable[..., Any] | tuple[Callable[..., Any], str]] = ()
) -> Any:
    """Everything in a safetensors or PyTorch file, with tensors on the CPU.

    allowed: globals a pickle may use besides PyTorch's own list, as for `torch.serialization`.

    Raises:
        WeightsError: no such file, damaged or incomplete, not weights, or a pickle that would run
            code (it is refused without running it).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file", "check the name")
    head = b""
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if head[8:9] == b"{":  # safetensors: a length in 8 bytes, then JSON; no pickle, no zip
            return safetensors.torch.load_file(path)
        if head.startswith(b"PK"):
            check_sizes(path)
        if head.startswith(b"PK") and _is_torchscript(path):
            command = fetch_command(["clip-vit-l-14"])
            raise WeightsError(
                f"{path}: cannot be read as weights: it is a TorchScript archive, a program",
                f"for OpenAI's CLIP run `{command}`, for others save a state_dict",
            )
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Damaged as error:
        raise WeightsError(
            f"{path}: cannot be read as weights: it is damaged ({error})",
            "fetch it again, or save a state_dict",
        ) from error
    except Exception as error:  # bad bytes raise nearly anything in these readers
        problem, fix = _diagnose(head, error)
        raise WeightsError(f"{path}: {problem}", fix) from error


def _is_torchscript(path: Path) -> bool:
    """Whether a zip holds the constants of a program."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _diagnose(head: bytes, error: Exception) -> tuple[str, str]:
    """Problem and fix of a file that could not be read; head: its first bytes."""
    # PyTorch's own words: "Unsupported global: GLOBAL posix.system was not an allowed global".
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and foreign:
        return (
            f"holds {foreign[1]}, which could run code, and was refused without running it",
            "use a file of plain tensors (safetensors, or a saved state_dict)",
        )
    if not head:
        problem, fix = "it is empty", "fetch it again"
    elif head.startswith(_LFS):
        problem, fix = "it is a pointer of Git LFS", "run `git lfs pull` in its repository"
    elif _PAGE.match(head):
        problem, fix = "it is a web page", "check the address and fetch it again"
    else:
        problem = "it is damaged, incomplete or of another kind"
        fix = "fetch it again, and compare its checksum"
    return f"cannot be read as weights: {problem}", fix


_END = struct.Struct("<4s4H2LH")  # end of central directory: APPNOTE.TXT of zip, 4.3.16
_BLOCK = 1 << 20
_GROWTH = 4  # weights hardly compress: an archive that grows more is not one of weights
_SLACK = 1 << 20  # bytes: a small archive consists of padding


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_sizes(path: Path) -> None:
    """Read the directory of an archive alone. Raises Damaged: it would inflate beyond measure."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise Damaged(f"its directory cannot be read: {error}") from error
    if declared > _GROWTH * size + _SLACK:
        raise Damaged(f"{size} bytes that would inflate to {declared}")


def add_digest(path: Path) -> None:
    """Store the SHA-256 of a finished archive in its comment, which every reader of zip skips."""
    with path.open("r+b") as file:
        end = file.seek(-_END.size, 2)
        *fields, comment = _END.unpack(file.read(_END.size))
        if fields[0] != b"PK\x05\x06" or comment:
            raise ValueError(f"{path}: is no zip archive without a comment")
        file.seek(end)
        file.write(_END.pack(*fields, len(BLANK)) + BLANK)
    digest = _digest(path)
    with path.open("r+b") as file:
        file.seek(-len(digest), 2)
        file.write(digest)


def check_digest(path: Path) -> None:
    """Check all bytes of an archive: by its digest, or by the checksums of zip if it has none.

    Raises Damaged, OSError.
    """
    with path.open("rb") as file:
        file.seek(-min(len(BLANK), path.stat().st_size), 2)
        tail = file.read()
    if tail.startswith(MARK):
        if tail[len(MARK) :] != _digest(path):
            raise Damaged("its digest does not fit its content")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong, cut = archive.testzip(), archive.comment.startswith(MARK)
    except Exception as error:  # damaged bytes raise nearly anything
        raise Damaged(f"it is no sound archive: {error}") from error
    if cut:
        raise Damaged("its last bytes are missing")
    if wrong:
        raise Damaged(f"the checksum of {wrong} does not fit")


def _digest(path: Path) -> bytes:
    """SHA-256 of a file whose last 64 bytes are a digest, which count as zeros; in hex."""
    digest, left = hashlib.sha256(), path.stat().st_size - 64
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    digest.update(b"0" * 64)
    return digest.hexdigest().encode()
