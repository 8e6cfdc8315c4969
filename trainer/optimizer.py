"""From a loss to an update: batches in parts, Adam with its learning rates, moving averages.

Everything happens on the device: an update whose numbers are not finite is skipped there.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.config import Schedule

Parts = list[tuple[Tensor, str]]  # of a batch: inputs, and which encoder takes them
Outputs = list[tuple[Tensor, ...]]  # of each part
Encode = Callable[[Tensor, str], tuple[Tensor, ...]]
Loss = Callable[[Outputs], Tensor]


def backward_in_parts(
    encode: Encode,
    parts: Parts,
    loss: Loss,
    draws: bool,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Add the gradients of a loss of all parts, with the activations of one part in memory.

    GradCache (Gao et al. 2021): every part is encoded without activations; the loss of the whole
    batch gives a gradient for each output; then each part is encoded again and receives its own.

    draws: whether encoding draws random numbers, which have to be the same both times.
    after: called when a part has added its gradients.
    """
    with torch.no_grad(), torch.random.fork_rng(enabled=draws):
        outputs: Outputs = [encode(*part) for part in parts]
    outputs = [tuple(x.detach().requires_grad_() for x in output) for output in outputs]
    loss(outputs).backward()
    for part, output in zip(parts, outputs, strict=True):
        pairs = list(zip(encode(*part), output, strict=True))
        again = [x for x, _ in pairs if x.requires_grad]
        torch.autograd.backward(again, [leaf.grad for x, leaf in pairs if x.requires_grad])
        after()


def rate_factor(step: int, steps: int, warmup: int = 0, schedule: Schedule = "constant") -> float:
    """The learning rate of a step as a share of its highest value.

    It grows linearly in the first `warmup` steps, then stays, or falls to 0 as half a cosine
    (Loshchilov and Hutter 2017, without restarts).

    Args:
        step: from 1 to `steps`.
    """
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup) / (steps - warmup)))


class LossScale:
    """The factor of a loss that keeps gradients in the range of float16 (Micikevicius et al. 2018).

    It halves when a gradient overflows, whose update is then skipped, and doubles after `patience`
    updates in a row: the arithmetic of torch.amp.GradScaler without a question to the host.
    """

    START, LEAST = 2.0**16, 1.0

    def __init__(self, device: torch.device, patience: int = 2000):
        self.patience = patience
        self.scale = torch.full((), self.START, device=device)
        self.updates = torch.zeros((), device=device)  # in a row
        self.overflow = torch.zeros((), device=device)  # 1: the last gradients were not finite

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients of a scaled loss by the scale."""
        torch._foreach_mul_(gradients, 1 / self.scale)

    def finite(self, norms: list[Tensor]) -> list[Tensor]:
        """Norms for the log: those of an overflow are 0, since only the update is skipped.

        At the smallest scale they stay as they are: the cause is then another.
        """
        found = ~torch.stack(norms).isfinite().all()
        self.overflow.copy_(found)
        tolerated = found & (self.scale > self.LEAST)
        return [torch.where(tolerated, 0.0, norm) for norm in norms]

    def update(self) -> None:
        """Change the scale after a step."""
        grown = self.updates + 1 >= self.patience
        factor = torch.where(self.overflow > 0, 0.5, torch.where(grown, 2.0, 1.0))
        self.updates.copy_(torch.where((self.overflow > 0) | grown, 0.0, self.updates + 1))
        self.scale.mul_(factor).clamp_(min=self.LEAST)


class Optimizer:
    """Adam over groups of parameters, each with its own learning rate.

    groups: parameters and their highest learning rate; empty groups are left out, and groups of one
    rate are one. clip: the largest norm of a group's gradient, 0 for any. betas: Adam's. half:
    whether networks run in float16, whose losses are scaled.
    """

    def __init__(
        self,
        groups: Sequence[tuple[list[nn.Parameter], float]],
        clip: float = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        half: bool = False,
    ):
        self.networks = [parameters for parameters, _ in groups if parameters]
        self.clip = clip
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameters, rate in groups:
            if parameters:
                by_rate.setdefault(rate, []).extend(parameters)
        self.rates = list(by_rate)
        # Fused: one kernel for all tensors, which also skips the update if a device flag says so.
        self.adam = torch.optim.Adam(
            [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()],
            lr=self.rates[0],
            betas=betas,
            fused=True,
        )
        self.loss_scale = LossScale(self.networks[0][0].device) if half else None

    def scaled(self, loss: Loss) -> Loss:
        """The loss to send backward."""
        if (loss_scale := self.loss_scale) is None:
            return loss
        return lambda outputs: loss(outputs) * loss_scale.scale

    def numbers(self) -> dict[str, Tensor]:
        """What the log says of float16; call it after `norms`."""
        if self.loss_scale is None:
            return {}
        return {
            "loss_scale": self.loss_scale.scale.clone(),
            "skipped_update": self.loss_scale.overflow.clone(),
        }

    def zero_grad(self) -> None:
        """Free the gradients."""
        self.adam.zero_grad()

    def norms(self) -> list[Tensor]:
        """The norm of the gradient of each network, then clip the gradients to it if asked."""
        norms = []
        for parameters in self.networks:
            gradients = [p.grad for p in parameters if p.grad is not None]
            if self.loss_scale is not None:
                self.loss_scale.unscale(gradients)
            norms.append(nn.utils.get_total_norm(gradients))
            if self.clip:
                nn.utils.clip_grads_with_norm_(parameters, self.clip, norms[-1])
        return norms if self.loss_scale is None else self.loss_scale.finite(norms)

    def update(self, numbers: Tensor, factor: Tensor | None = None) -> None:
        """Adam's update, skipped on the device if one of `numbers` is not finite.

        factor: of the learning rates, a scalar on the device; None for 1.
        """
        # The flag that torch.amp.GradScaler passes to a fused optimizer: 1 skips the update.
        skip = (~numbers.isfinite().all()).float()
        if self.loss_scale is not None:
            skip = torch.maximum(skip, self.loss_scale.overflow)
            self.loss_scale.update()
        self.adam.found_inf = skip  # type: ignore[attr-defined]
        # Fused Adam counts steps on the device, as a graph needs, and asks to be told of one.
        capturing = numbers.is_cuda and torch.cuda.is_current_stream_capturing()
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["capturable"] = capturing
            group["lr"] = rate if factor is None else rate * factor
        self.adam.step()
        for group in self.adam.param_groups:
            group["capturable"] = False

    def state_dict(self) -> dict[str, object]:
        """Adam's state, and in float16 that of the loss scale."""
        state: dict[str, object] = self.adam.state_dict()
        if self.loss_scale is None:
            return state
        return state | {"loss_scale": [self.loss_scale.scale, self.loss_scale.updates]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a state. Raises ValueError, KeyError, …: it is of other networks."""
        self.adam.load_state_dict({k: v for k, v in state.items() if k != "loss_scale"})
        if self.loss_scale is not None:
            ours = self.loss_scale.scale, self.loss_scale.updates
            for tensor, value in zip(ours, cast(list[Tensor], state["loss_scale"]), strict=True):
                tensor.copy_(value)
        for parameter, moments in self.adam.state.items():  # PyTorch does not compare shapes
            if moments["exp_avg"].shape != parameter.shape:
                raise ValueError("its optimizer has moments of other shapes")


class MovingAverage:
    """A moving average of a network's weights.

    Not PyTorch's AveragedModel: it counts on the host, which waits for a copy at each step.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.move = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Move towards the weights that the network has now."""
        average, network = (list(x.parameters()) for x in (self.average, self.network))
        self.move(average, network, 0)
        for mean, now in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mean.copy_(now)
