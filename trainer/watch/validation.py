"""What is measured of the SR network's pictures: without a reference, and against one."""

import logging
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from lasr.errors import UserError, one_line
from schemas.manifest import SCALE
from trainer.evaluate.metrics import Metric, load_metric
from trainer.evaluate.resize import reduce
from trainer.losses import full_precision
from trainer.pretrain.validation import psnr_y
from trainer.sheets import colour_shift, to_uint8
from trainer.watch.pictures import Look

log = logging.getLogger(__name__)

NO_REFERENCE = ("niqe", "brisque", "piqe")  # lower is better; they need no downloaded weights
BEST_CONSISTENCY = 100.0  # dB, of pictures that agree


@contextmanager
def undisturbed(*networks: nn.Module) -> Iterator[None]:
    """Leave no trace in the training: networks in evaluation mode, random streams set back.

    In evaluation mode batch norm keeps its statistics. Each module returns to the mode it had.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    tuned = torch.backends.cudnn.benchmark
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(torch.no_grad())
        torch.backends.cudnn.benchmark = False  # pictures of many shapes, compiled for none of them
        if "torch._dynamo" in sys.modules:  # loaded by --compile
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for network in networks:
                network.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            torch.backends.cudnn.benchmark = tuned
            random.setstate(python)
            np.random.set_state(numpy)


class Validation:
    """Enlarges the pictures of several sets, and measures the result.

    sets: pictures by the name of their set. vgg: frozen, gives features by layer, for the
    perceptual distance to references. context: entered around the networks, for their precision.
    """

    def __init__(
        self,
        sets: dict[str, list[Look]],
        vgg: nn.Module,
        device: torch.device,
        context: Callable[[], torch.autocast],
    ):
        self.sets, self.vgg, self.device, self.context = sets, vgg, device, context
        self.metrics = load_metrics()

    def __call__(self, network: nn.Module) -> tuple[dict[str, float], dict[str, list[Tensor]]]:
        """The means over each set, as `niqe_held_out`, and the SR pictures by set, on the CPU.

        Call it inside `undisturbed`. A measure that fails on a picture leaves that picture out.
        """
        numbers: dict[str, float] = {}
        made: dict[str, list[Tensor]] = {}
        for name, looks in self.sets.items():
            made[name] = [self._enlarged(network, look.lr) for look in looks]
            found: dict[str, list[float]] = {}
            for look, sr in zip(looks, made[name], strict=True):
                for measure, value in self._measured(look, sr).items():
                    found.setdefault(measure, []).append(value)
            numbers |= {f"{key}_{name}": statistics.fmean(each) for key, each in found.items()}
        return numbers, made

    def _enlarged(self, network: nn.Module, lr: Tensor) -> Tensor:
        """An SR picture as it would be saved: rounded to 8 bits, (3, h, w) in [0, 1]."""
        batch = lr[None].to(self.device).contiguous(memory_format=torch.channels_last)
        with self.context():
            sr = network.forward(batch)[0]  # not a compiled __call__, which knows one shape
        return torch.from_numpy(to_uint8(sr)).permute(2, 0, 1).float() / 255

    def _measured(self, look: Look, sr: Tensor) -> dict[str, float]:
        values = {}
        for metric in self.metrics:
            try:
                values[metric.name] = metric.score(sr, None)
            except UserError as error:  # such as a picture without any texture
                log.debug("%s: %s", look.name, error)
        values["consistency"] = consistency(sr, look.lr)
        values["colour_shift"] = float(colour_shift(sr[None], look.lr[None]))
        if look.reference is not None:
            values["psnr_y"] = min(psnr_y(sr, look.reference), BEST_CONSISTENCY)
            values["perceptual"] = self._perceptual(sr, look.reference)
        return values

    def _perceptual(self, sr: Tensor, reference: Tensor) -> float:
        """The mean absolute difference between features of the VGG term's network."""
        with self.context():
            pair = torch.stack([sr, reference]).to(self.device)
            features = self.vgg.forward(pair.contiguous(memory_format=torch.channels_last))
        terms = [
            (full_precision(both[0]) - full_precision(both[1])).abs().mean()
            for both in features.values()
        ]
        return float(torch.stack(terms).mean())


def consistency(sr: Tensor, lr: Tensor) -> float:
    """PSNR in dB between an SR picture, shrunk again by MATLAB's bicubic, and its input.

    sr: (3, SCALE h, SCALE w), lr: (3, h, w), in [0, 1]. At most BEST_CONSISTENCY.
    """
    error = (reduce(sr, SCALE) - lr.double()).square().mean().item()
    return min(-10 * math.log10(max(error, 1e-12)), BEST_CONSISTENCY)


def load_metrics() -> list[Metric]:
    """The metrics without a reference. Without pyiqa there are none, said in one line."""
    try:
        return [load_metric(name, torch.device("cpu")) for name in NO_REFERENCE]
    except UserError as error:
        log.warning(
            "validation without %s: %s", ", ".join(NO_REFERENCE).upper(), one_line(error, 200)
        )
        return []
