"""An RRDB as NCNN's pair of files: what Upscayl and the other Vulkan programs load.

`.param` lists layers and the blobs between them, `.bin` holds the weights in the layers' order.
Layers and the blob names `data` and `output` are those of the published realesrgan-x4plus, for the
programs ask for these two by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from trainer.models.rrdb import RESIDUAL, RRDB

MAGIC = 7767517  # the first line of every .param
HALF = (0x01306B47).to_bytes(4, "little")  # before weights in float16; four zero bytes for float32
_LEAKY = "9=2 -23310=1,0.2"  # the convolution's own activation: leaky ReLU with this slope


@dataclass(frozen=True)
class Layer:
    """A line of `.param`: a kind, the blobs that go in and come out, numbered parameters."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: str = ""
    conv: nn.Conv2d | None = None  # whose weights stand in `.bin`


def write_ncnn(network: RRDB, param: Path, binary: Path, half: bool) -> None:
    """Write the two files as they are named (neither atomically); half: weights in float16."""
    layers = list(_split(list(_layers(network))))
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = [str(MAGIC), f"{len(layers)} {blobs}"]
    for number, layer in enumerate(layers):
        counts = f"{len(layer.inputs)} {len(layer.outputs)}"
        names = " ".join((*layer.inputs, *layer.outputs))
        line = f"{layer.kind:16} {layer.kind.lower()}{number} {counts} {names} {layer.parameters}"
        lines.append(line.rstrip())
    param.write_text("\n".join(lines) + "\n", encoding="ascii")
    with open(binary, "wb") as file:
        for layer in layers:
            if layer.conv is not None:
                file.write(_weights(layer.conv, half))


def _layers(network: RRDB) -> Iterator[Layer]:
    """RRDB.forward as layers, each blob named by what it is."""

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
        around = x
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
        yield residual(x, around, f"b{b}")
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


def _split(layers: list[Layer]) -> Iterator[Layer]:
    """NCNN frees a blob after its one reader, so what is read n times is split into n first."""
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


def _weights(conv: nn.Conv2d, half: bool) -> bytes:
    """A tag, the weights filled up to a multiple of 4 bytes, and the bias, always float32."""
    assert conv.bias is not None
    weights = _array(conv.weight).astype("<f2" if half else "<f4").tobytes()
    tag = HALF if half else bytes(4)
    return tag + weights + bytes(-len(weights) % 4) + _array(conv.bias).astype("<f4").tobytes()


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().float().numpy()
    return array
