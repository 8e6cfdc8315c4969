"""The SR network: ESRGAN's RRDB x4 (Wang et al. 2018b), and its weight files.

Architecture and key names are those of BasicSR's `RRDBNet`, so weights of ESRGAN, BSRGAN and
Real-ESRGAN go in and ours go out to every program that reads theirs.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lasr.weights.locate import WeightsError
from lasr.weights.tensors import read_tensors

RESIDUAL = 0.2  # residuals are scaled down, which keeps a network this deep stable without norms
REACH = 2  # pixels of features on each side that `RRDB.reconstruct` looks at: 1/2 + 3/4
WANTED = "give weights of a x4 RRDB, such as RealESRGAN_x4plus.pth"


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    # In place: neither a convolution nor a leaky ReLU needs its unactivated output for backward.
    return F.leaky_relu(x, 0.2, inplace=True)


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees the block's input and all outputs before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)
        with torch.no_grad():
            for parameter in self.parameters():  # ESRGAN, section 3.1: residuals start small
                if parameter.ndim == 4:
                    nn.init.kaiming_normal_(parameter).mul_(0.1)
                else:
                    parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, _leaky(conv(seen))), dim=1)
        y: Tensor = x + RESIDUAL * self.conv5(seen)
        return y


class _Block(nn.Module):
    """Residual in residual: three dense blocks and a way around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(features, growth)
        self.rdb2 = _DenseBlock(features, growth)
        self.rdb3 = _DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))
        return y


class RRDB(nn.Module):
    """RRDB x4: pictures (n, 3, h, w) in [0, 1] to (n, 3, 4h, 4w), which is not clamped.

    Args:
        features: channels of the trunk.
        blocks: residual-in-residual blocks.
        growth: channels that each dense convolution adds.

    The defaults are the published network of 16,697,987 parameters.
    """

    def __init__(self, features: int = 64, blocks: int = 23, growth: int = 32) -> None:
        super().__init__()
        if min(features, blocks, growth) < 1:
            raise ValueError(f"RRDB({features}, {blocks}, {growth}): each must be 1 or more")
        self.features, self.blocks, self.growth = features, blocks, growth
        self.conv_first = _conv(3, features)
        self.body = nn.Sequential(*(_Block(features, growth) for _ in range(blocks)))
        self.conv_body = _conv(features, features)
        self.conv_up1 = _conv(features, features)
        self.conv_up2 = _conv(features, features)
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.reconstruct(self.extract(x))

    def extract(self, x: Tensor) -> Tensor:
        """Pictures to features of the same size, (n, features, h, w): nearly all of the work."""
        x = self.conv_first(x)
        y: Tensor = x + self.conv_body(self.body(x))
        return y

    def reconstruct(self, x: Tensor) -> Tensor:
        """Features to pictures of four times the size; a pixel depends on REACH around it."""
        for conv in (self.conv_up1, self.conv_up2):
            x = _leaky(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
        y: Tensor = self.conv_last(_leaky(self.conv_hr(x)))
        return y


def load_rrdb(path: str | Path) -> RRDB:
    """The x4 RRDB in a safetensors or PyTorch file. Raises WeightsError as `rrdb_from` does."""
    return rrdb_from(read_tensors(path), path)


def rrdb_from(tensors: dict[str, Tensor], path: str | Path) -> RRDB:
    """The x4 RRDB that the tensors of the file `path` make: float32, sizes from their shapes.

    Reads the key layouts of BasicSR and Real-ESRGAN, of BSRGAN and later ESRGAN (`RRDB_trunk`), and
    of the first ESRGAN (`model.1.sub`), bare or in a checkpoint (see `read_tensors`).

    Raises:
        WeightsError: it is no RRDB, has another scale than 4, or has missing, unknown or misshapen
            tensors.
    """
    state = _basicsr_keys(tensors)
    first, grown = state.get("conv_first.weight"), state.get("body.0.rdb1.conv1.weight")
    if first is None or grown is None or first.ndim != 4 or grown.ndim != 4:
        raise WeightsError(f"{path}: is not an RRDB network; {WANTED}")
    # Real-ESRGAN makes x2 and x1 of the x4 network by folding 2x2 or 4x4 pixels into channels.
    fold = {12: 2, 48: 4}.get(first.shape[1], 1)
    doublings = len({key.split(".")[0] for key in state if re.match(r"conv_up\d", key)})
    if fold != 1 or doublings != 2:
        raise WeightsError(f"{path}: is an RRDB x{2**doublings / fold:g}, not x4; {WANTED}")
    blocks = len({key.split(".")[1] for key in state if key.startswith("body.")})
    # Nothing is initialised only to be overwritten, and the random state is left as it was.
    with torch.device("meta"):
        network = RRDB(first.shape[0], blocks, grown.shape[0])
    expected = network.state_dict()
    faults = [f"{key} is missing" for key in expected if key not in state]
    faults += [f"{key} is unknown" for key in state if key not in expected]
    faults += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        raise WeightsError(f"{path}: is not a plain RRDB: {faults[0]}{more}; {WANTED}")
    network.load_state_dict({key: state[key].float() for key in expected}, assign=True)
    return network


def _basicsr_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the older layouts' keys renamed to BasicSR's; other keys stay."""
    tails = sorted({int(m[1]) for key in state if (m := re.fullmatch(r"model\.(\d+)\.\w+", key))})
    # model.0 is the first convolution; then, however many, those after each doubling; then two.
    ups = {str(index): f"conv_up{n}" for n, index in enumerate(tails[1:-2], start=1)}
    ends = {str(i): name for i, name in zip(tails[-2:], ("conv_hr", "conv_last"), strict=False)}
    tops = {**ends, **ups, "0": "conv_first"}
    renames = (
        (r"model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.", r"body.\1.rdb\2.\3."),
        (r"model\.1\.sub\.\d+\.(?=weight|bias)", "conv_body."),
        (r"RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
        (r"trunk_conv\.", "conv_body."),
        (r"upconv(\d)\.", r"conv_up\1."),
        (r"HRconv\.", "conv_hr."),
    )

    def renamed(key: str) -> str:
        for pattern, name in renames:
            key = re.sub("^" + pattern, name, key)
        return re.sub(r"^model\.(\d+)(?=\.\w+$)", lambda m: tops.get(m[1], m[0]), key)

    return {renamed(key): tensor for key, tensor in state.items()}
