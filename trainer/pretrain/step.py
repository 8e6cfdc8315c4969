"""One step of pretraining: L1 between SR and HR patches, its gradient, and the update."""

from typing import Any

import torch
from torch import Tensor, nn

from lasr.device import autocast
from trainer.models.compiled import compile_blocks
from trainer.optimizer import MovingAverage, Optimizer, rate_factor
from trainer.pretrain.config import PretrainConfig
from trainer.pretrain.photographs import Crops
from trainer.sheets import colour_shift


class PretrainStep:
    """A step of pretraining as a callable. network: on its device, with its initial weights."""

    def __init__(self, config: PretrainConfig, network: nn.Module):
        assert config.precision != "auto"  # the loop has chosen one
        self.config, self.names = config, list[str]()
        self.sr_network = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = next(network.parameters()).device
        # Adam's second moment over 100 steps, as BasicSR has it for PSNR-oriented networks.
        self.optimizer = Optimizer([(list(network.parameters()), config.lr)], betas=(0.9, 0.99))
        self.moving_average = MovingAverage(network, config.ema) if config.ema else None
        self.average = self.moving_average.average if self.moving_average else None
        self.autocast = autocast(self.device, config.precision)
        self.no_texts = torch.empty(0)
        if config.compile != "off":
            compile_blocks(self.sr_network, config.compile)

    def __call__(self, batch: Crops, tokens: Tensor, stop: bool = False, step: int = 1) -> Tensor:
        """Train on a batch. step: from 1; the learning rate depends on it.

        Returns numbers for the log as a float32 vector on the device, with an entry for each of
        `names`. If one of them is not finite, no weight has changed.
        """
        config = self.config
        lr, hr = (x.to(self.device, non_blocking=True) for x in (batch.lr, batch.hr))
        self.optimizer.zero_grad()
        with self.autocast:
            sr = self.sr_network(lr.contiguous(memory_format=torch.channels_last))
        loss = (sr.float() - hr).abs().mean()
        loss.backward()
        factor = rate_factor(step, config.steps, config.warmup, "cosine")
        with torch.no_grad():
            rate, asked = (torch.full((), float(x), device=self.device) for x in (factor, stop))
            (norm,) = self.optimizer.norms()
            numbers = {
                "l1": loss.detach(),
                "colour_shift": colour_shift(sr.detach(), lr),
                "stop": asked,
                "gradient_norm_sr": norm,
                "rate": rate,
            }
            self.names = list(numbers)
            result = torch.stack(list(numbers.values()))
            self.optimizer.update(result, rate)
            if self.moving_average:
                self.moving_average.update()
        return result

    def texts_of(self, batch: Crops) -> Tensor:
        """None: no captions are needed."""
        return self.no_texts

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint holds."""
        state = {"sr": self.sr_network.state_dict(), "optimizer": self.optimizer.adam.state_dict()}
        return state | ({"ema": self.average.state_dict()} if self.average is not None else {})

    def load_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue from `state`. Raises KeyError, RuntimeError, …: it is of other networks."""
        self.sr_network.load_state_dict(state["sr"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
