"""The SR network: ESRGAN's RRDB x4 (Wang et al. 2018b), its weight files, and an untrained start.

Architecture and key names are those of BasicSR's `RRDBNet`, so weights of ESRGAN, BSRGAN and
Real-ESRGAN can be loaded, and other programs load ours.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lasr.weights.locate import WeightsError

RESIDUAL = 0.2  # scale of residuals: keeps a network this deep stable without normalisation
REACH = 2  # pixels of features on each side that an output of `reconstruct` depends on
WANTED = "give weights of a x4 RRDB, such as RealESRGAN_x4plus.pth"


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    # In place: the backward pass needs the output before the activation for neither layer.
    return F.leaky_relu(x, 0.2, inplace=True)


class _DenseBlock(nn.Module):
    """Five convolutions; the input of each is the block's input and all outputs before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)
        with torch.no_grad():
            for parameter in self.parameters():  # ESRGAN, section 3.1: small initial weights
                if parameter.ndim == 4:
                    nn.init.kaiming_normal_(parameter).mul_(0.1)
                else:
                    parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features = torch.cat((features, _leaky(conv(features))), dim=1)
        return torch.add(x, self.conv5(features), alpha=RESIDUAL)


class _Block(nn.Module):
    """Residual in residual: three dense blocks and a skip connection."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(features, growth)
        self.rdb2 = _DenseBlock(features, growth)
        self.rdb3 = _DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=RESIDUAL)


class RRDB(nn.Module):
    """RRDB x4: pictures (n, 3, h, w) in [0, 1] to (n, 3, 4h, 4w), not clamped.

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
        """Pictures to features (n, features, h, w), nearly all of the arithmetic."""
        x = self.conv_first(x)
        y: Tensor = x + self.conv_body(self.body(x))
        return y

    def reconstruct(self, x: Tensor) -> Tensor:
        """Features to pictures of four times the size; a pixel depends on REACH features around."""
        for conv in (self.conv_up1, self.conv_up2):
            x = _leaky(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
        y: Tensor = self.conv_last(_leaky(self.conv_hr(x)))
        return y


def rrdb_from(tensors: dict[str, Tensor], path: str | Path) -> RRDB:
    """The x4 RRDB with the tensors of the file `path`, float32; its size follows from their shapes.

    Accepts the key layouts of BasicSR and Real-ESRGAN, of BSRGAN and later ESRGAN (`RRDB_trunk`),
    and of the first ESRGAN (`model.1.sub`).

    Raises:
        WeightsError: not an RRDB, of another scale than 4, or tensors are missing, unknown or of
            the wrong shape.
    """
    state = _basicsr_keys(tensors)
    first, grown = state.get("conv_first.weight"), state.get("body.0.rdb1.conv1.weight")
    if first is None or grown is None or first.ndim != 4 or grown.ndim != 4:
        raise WeightsError(f"{path}: is not an RRDB network", WANTED)
    # Real-ESRGAN's x2 and x1 are the x4 network with 2x2 or 4x4 pixels folded into channels.
    fold = {12: 2, 48: 4}.get(first.shape[1], 1)
    doublings = len({key.split(".")[0] for key in state if re.match(r"conv_up\d", key)})
    if fold != 1 or doublings != 2:
        raise WeightsError(f"{path}: is an RRDB x{2**doublings / fold:g}, not x4", WANTED)
    blocks = len({key.split(".")[1] for key in state if key.startswith("body.")})
    # On the meta device nothing is initialised, and the random state does not change.
    with torch.device("meta"), _Uninitialised():
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
        raise WeightsError(f"{path}: is not a plain RRDB: {faults[0]}{more}", WANTED)
    network.load_state_dict({key: state[key].float() for key in expected}, assign=True)
    return network


class _Uninitialised(TorchFunctionMode):
    """Initial values are not computed: on the meta device that takes a quarter of a second."""

    def __torch_function__(  # type: ignore[no-untyped-def]
        self, function, types, args=(), kwargs=None
    ):
        if function in (Tensor.normal_, Tensor.uniform_, Tensor.mul_, Tensor.zero_):
            return args[0]
        return function(*args, **(kwargs or {}))


def _basicsr_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the keys of older layouts renamed to BasicSR's; other keys are unchanged."""
    tails = sorted({int(m[1]) for key in state if (m := re.fullmatch(r"model\.(\d+)\.\w+", key))})
    # model.0 is the first convolution, then one per doubling, then the last two.
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


def untrained_rrdb(features: int = 64, blocks: int = 23, growth: int = 32, seed: int = 0) -> RRDB:
    """An UNTRAINED RRDB x4 that interpolates: initial weights when none can be downloaded.

    The paper starts from PSNR-oriented weights (section 4). This network has learnt nothing. Four
    channels are set by hand so that a picture in [0, 1] is enlarged bilinearly by 2, twice, except
    for a grey tint in the outermost 3 pixels (zero padding). All other weights are random from
    `seed` and contribute about 1/255. Every weight receives a gradient.

    Raises:
        ValueError: fewer than 4 features.
    """
    if features < 4:
        raise ValueError(f"untrained_rrdb: {features} features; give 4 or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = RRDB(features, blocks, growth)
    delta = torch.tensor([0.0, 1.0, 0.0])
    smooth = torch.tensor([0.25, 0.5, 0.25])  # after a nearest x2: the weights 3/4, 1/4 of bilinear
    with torch.no_grad():
        # A new block amplifies by 1.2 or more, 23 of them by 66, and the first steps of Adam would
        # destroy the picture. Its last convolution takes back most of that: 1.04 remains.
        for key, weight in network.body.named_parameters():
            if key.endswith("rdb3.conv5.weight"):
                weight[:, :features, 1, 1] -= torch.eye(features) * 0.8 / RESIDUAL
        for parameter in network.conv_body.parameters():
            parameter.mul_(0.01)  # scaled down, not zeroed, so that gradients reach the body
        for conv, taps, grey in (
            (network.conv_first, delta, 0.0),
            (network.conv_up1, smooth, 0.5),
            (network.conv_up2, smooth, 0.5),
            (network.conv_hr, delta, 0.0),
            (network.conv_last, delta, 0.0),
        ):
            kernel = torch.outer(taps, taps)
            conv.weight[:4] *= 0.01
            bias = conv.get_parameter("bias")[:4]
            bias.copy_(torch.tensor([grey, grey, grey, 1.0])[: len(bias)])
            # Red, green and blue stay non-negative, so leaky ReLUs do not change them. Channel 3 is
            # 1 everywhere: with it the convolution is applied to x - 1/2, and zero padding means a
            # grey border and not a black one.
            for colour in range(3):
                conv.weight[colour, colour] += kernel
                if grey:
                    conv.weight[colour, 3] -= grey * kernel
    return network
