"""One training step: equations (1) to (5), their gradients, and the update.

The host never waits for the device here. The encoders' losses are computed and sent backward before
the SR network runs: the two halves share nothing but text features, as constants, so that their
activations are never in memory together. What is computed once, and what is not computed at all:

- One call of the text encoder takes the LR captions, the HR captions and the quality words. The SR
  terms use the same features as constants.
- The SR terms use a second view of the image encoder, over the same weights, that takes no
  gradient. Only gradients of the pictures are computed, and no activation is stored for others. The
  graphs of the encoders' and of the SR network's loss share nothing, so neither loss can move the
  other's network.
- LR, HR and SR pictures take three calls of the image encoder. HR and SR could share one, but each
  of the two backward passes would then cross both halves (docs/training.md has the count).
- Numbers for the log stay on the device; trainer/loop.py reads them while the next step runs.

With `--accumulate` the batch passes in parts; the losses remain those of the whole batch, and so do
the gradients (`trainer.optimizer.backward_in_parts`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lasr.device import autocast, half_of, pick_precision
from schemas.manifest import SCALE
from trainer import losses
from trainer.config import TrainConfig
from trainer.data.dataset import Batch
from trainer.distributed import World
from trainer.models.compiled import Captured, compile_blocks
from trainer.models.encoders import Encoders
from trainer.models.half import HalfWeights
from trainer.models.vgg import vgg_term
from trainer.optimizer import (
    Encode,
    Loss,
    MovingAverage,
    Optimizer,
    Outputs,
    Parts,
    backward_in_parts,
    rate_factor,
)
from trainer.sheets import bicubic, colour_shift

Region = Callable[[str], AbstractContextManager[object]]


class TrainStep:
    """A training step as a callable, with the optimizer and the moving average of the weights.

    The networks are given on their device, with their initial weights. region: a context manager
    that is entered around each part of the step with its name, for profilers and benchmarks.
    """

    def __init__(
        self,
        config: TrainConfig,
        sr_network: nn.Module,
        encoders: Encoders,
        vgg: nn.Module,
        world: World | None = None,
        region: Region = record_function,
    ):
        self.config, self.world, self.region = config, world or World(), region
        # The layout of tensor cores: in another one every convolution converts its input.
        self.sr_network = sr_network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vgg = vgg.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoders = encoders.requires_grad_(False)
        if not config.freeze_encoders:  # appendix E.1
            encoders.make_trainable()
        self.frozen_images = encoders.frozen_images()
        self.weights = losses.LossWeights(
            config.weight_content,
            config.weight_quality,
            config.weight_vgg,
            config.weight_consistency,
        )
        self.sr_parameters, self.encoder_parameters = (
            [p for p in network.parameters() if p.requires_grad]
            for network in (sr_network, encoders)
        )
        self.device = next(sr_network.parameters()).device
        precision = pick_precision(config.precision, self.device, old_gpu="float16")
        rates = config.lr, config.lr_encoders or config.lr
        self.optimizer = Optimizer(
            [(self.sr_parameters, rates[0]), (self.encoder_parameters, rates[1])],
            config.clip_gradient,
            half=precision == "float16",
        )
        self.is_scheduled = config.warmup > 0 or config.schedule != "constant"
        self.moving_average = MovingAverage(sr_network, config.ema) if config.ema else None
        self.average = self.moving_average.average if self.moving_average else None
        # Networks that drop paths draw the same ones when a part is computed again.
        self.draws = any("Drop" in type(module).__name__ for module in sr_network.modules())
        self.autocast = autocast(self.device, precision)
        networks = self.sr_network, vgg, encoders, self.frozen_images
        self.half_weights = HalfWeights(networks, half_of(precision))
        self.words = encoders.tokens([*config.bad, *config.good])
        self.names: list[str] = []  # of the numbers that the last step returned
        if config.compile != "off":
            # Not the VGG network: nearly all of its time are convolutions, and none is repeated.
            for network in (self.sr_network, *encoders.towers(), self.frozen_images.visual):
                compile_blocks(network, config.compile)
        self.launch: Callable[..., Tensor] = self.compute
        # PyTorch's other modes have graphs of their own; collectives are not captured.
        one_gpu = self.device.type == "cuda" and self.world.size == 1
        if config.cuda_graph == "auto" and one_gpu and config.compile in ("off", "default"):
            self.launch = Captured(self.compute)

    def __call__(self, batch: Batch, tokens: Tensor, stop: bool = False, step: int = 1) -> Tensor:
        """Train on this rank's slice of a batch and return numbers for the log.

        tokens: those of `texts_of(batch)`. stop: whether this process was asked to stop; the mean
        over ranks is among the numbers, so all ranks stop after the same step. step: from 1; only
        a schedule depends on it. Returns a float32 vector on the device, the same on all ranks,
        with an entry for each of `names`. If one of them is not finite, no weight has changed.
        """
        config = self.config
        inputs = (x.to(self.device, non_blocking=True) for x in (batch.lr, batch.hr, tokens))
        factor = rate_factor(step, config.steps, config.warmup, config.schedule)
        numbers = (torch.full((), float(x), device=self.device) for x in (stop, factor))
        return self.launch(*inputs, *numbers)

    def compute(
        self, lr: Tensor, hr: Tensor, tokens: Tensor, stop: Tensor, factor: Tensor
    ) -> Tensor:
        """The step itself, of inputs on the device. stop: 1 or 0. factor: of the learning rates."""
        self.optimizer.zero_grad()  # frees the last gradients before activations need the memory
        sr, terms, total = self.gradients(lr, hr, tokens)
        with self.region("optimizer"), torch.no_grad():
            numbers = terms | {
                "total": total,
                "colour_shift": colour_shift(sr, lr),
                "stop": stop,
            }
            averages = self.world.average(torch.stack([x.detach() for x in numbers.values()]))
            names = ("gradient_norm_sr", "gradient_norm_encoders")
            norms = dict(zip(names, self.optimizer.norms(), strict=False))
            rates = ({"rate": factor} if self.is_scheduled else {}) | self.optimizer.numbers()
            self.names = [*numbers, *norms, *rates]
            result = torch.cat([averages, torch.stack([*norms.values(), *rates.values()])])
            self.optimizer.update(result, factor if self.is_scheduled else None)
            if self.moving_average is not None:
                self.moving_average.update()
        return result

    def gradients(
        self, lr: Tensor, hr: Tensor, tokens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Add the gradients of equation (5), averaged over ranks, to the parameters' `.grad`.

        lr, hr: this rank's pictures (n, 3, h, w) in [0, 1]. tokens: of their texts, see `texts_of`.
        Returns the pictures I_SR, the terms of the loss by name, and equation (5); all detached,
        the numbers float32 scalars. The contrastive terms are of the global batch, the VGG term of
        this rank's slice. Frozen encoders have no terms of their own.
        """
        weights, zero = self.weights, torch.zeros((), device=self.device)
        total, finish_encoders = zero, None
        with self.half_weights:
            texts, terms = self.encoder_gradients(lr, hr, tokens)
            if terms:
                total = weights.total(terms["content_encoders"], terms["quality_encoders"], zero)
                finish_encoders = self.world.average_gradients(self.encoder_parameters)
            sr, sr_terms = self.sr_gradients(lr, texts)
        finish_sr = self.world.average_gradients(self.sr_parameters)
        if finish_encoders:
            finish_encoders()
        finish_sr()
        of_sr = weights.total(*sr_terms.values())
        return sr, terms | sr_terms, total + of_sr

    def encoder_gradients(
        self, lr: Tensor, hr: Tensor, tokens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of the encoders' terms; no terms if the encoders are frozen.

        Equations (1), section 3.3, and (3), section 3.4. Returns the features of all texts, as
        constants, and the terms, detached.
        """
        region, encoders, n = self.region, self.encoders, len(lr)
        if not self.encoder_parameters:
            with self.autocast, region("text encoder"):
                return encoders.encode(tokens), {}
        pictures = {"LR": self.seen(lr), "HR": hr}
        if low := round(self.config.sr_as_low_quality * n):
            with torch.no_grad(), self.autocast, region("SR network"):
                pictures["SR"] = torch.cat([self.enlarge(part) for part in self.parts(lr[:low])])
        parts = [(part, "text encoder") for part in self.parts(tokens)]
        for role, batch in pictures.items():
            parts += [(part, f"image encoder, {role}") for part in self.parts(batch)]
        found: dict[str, Tensor] = {}

        def encode(part: Tensor, name: str) -> tuple[Tensor, ...]:
            with self.autocast, region(name):
                return ((encoders.encode if name == "text encoder" else encoders.images)(part),)

        def loss(outputs: Outputs) -> Tensor:
            features: dict[str, list[Tensor]] = {}
            for (_, name), (rows,) in zip(parts, outputs, strict=True):
                features.setdefault(name, []).append(rows)
            texts, f_lr, f_hr, *low_sr = (torch.cat(rows) for rows in features.values())
            with region("losses"):
                # One collective for all features that these terms need.
                rows = torch.cat([f_lr, f_hr, texts[:n], texts[n : 2 * n]], dim=1)
                gathered = self.world.gather(losses.full_precision(rows))
                f_lr, f_hr, c_lr, c_hr = gathered.chunk(4, dim=1)
                f_low = [f_lr, *(self.world.gather(losses.full_precision(f)) for f in low_sr)]
                q_minus, q_plus = self.quality_texts(texts)
                terms = {
                    "content_encoders": losses.content_encoders(f_lr, f_hr, c_lr, c_hr),
                    "quality_encoders": losses.quality_encoders(
                        torch.cat(f_low), f_hr, q_minus, q_plus
                    ),
                }
            found.update(terms, texts=texts)
            content, quality = terms.values()
            return self.weights.total(content, quality, torch.zeros_like(content))

        self.backward(encode, parts, loss, "backward, encoders")
        terms = {name: value.detach() for name, value in found.items()}
        return terms.pop("texts"), terms

    def sr_gradients(self, lr: Tensor, texts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of the SR network's terms. texts: constant features.

        Equations (2), section 3.3, and (4), section 3.4, the VGG term, section 3.5, and
        `--weight-consistency` if it is on. Returns the pictures I_SR and the terms, all detached,
        in the order of `LossWeights.total`.
        """
        region, n, weights = self.region, len(lr), self.weights
        parts = [(part, "image encoder, SR") for part in self.parts(lr)]
        made: list[Tensor] = []
        found: dict[str, Tensor] = {}

        def encode(part: Tensor, name: str) -> tuple[Tensor, ...]:
            with self.autocast:
                with region("SR network"):
                    sr = self.enlarge(part)
                with region(name):
                    f_sr = self.frozen_images(sr)
                needed = torch.is_grad_enabled() and weights.vgg > 0
                with region("VGG"), torch.set_grad_enabled(needed):
                    vgg = vgg_term(self.vgg, sr, part, self.config.vgg_distance)
            made.append(sr.detach())
            return (f_sr, vgg, *([losses.consistency(sr, part)] if weights.consistency else []))

        def loss(outputs: Outputs) -> Tensor:
            with region("losses"):
                f_sr = torch.cat([features for features, *_ in outputs])
                # The others are means over the pictures of a part: VGG, and consistency if on.
                shares = [len(part) / n for part, _ in parts]
                means = [
                    torch.stack([share * x for share, x in zip(shares, of, strict=True)]).sum()
                    for of in zip(*(output[1:] for output in outputs), strict=True)
                ]
                features = losses.full_precision(torch.cat([f_sr, texts[:n]], dim=1))
                f_sr, c_lr = self.world.gather(features).chunk(2, dim=1)
                found["content_sr"] = losses.content_sr(f_sr, c_lr)
                found["quality_sr"] = losses.quality_sr(f_sr, *self.quality_texts(texts))
                found.update(zip(["vgg", "consistency"], means, strict=False))
            return weights.total(*found.values())

        self.backward(encode, parts, loss, "backward, SR network")
        terms = {name: value.detach() for name, value in found.items()}
        return torch.cat(made[: len(parts)]), terms

    def backward(self, encode: Encode, parts: Parts, loss: Loss, name: str) -> None:
        """Add the gradients of a loss of what `encode` returns for all parts."""
        loss = self.optimizer.scaled(loss)
        if self.config.accumulate == 1:
            total = loss([encode(*part) for part in parts])
            with self.region(name):
                total.backward()
                self.half_weights.deliver()
        else:
            backward_in_parts(encode, parts, loss, self.draws, self.half_weights.deliver)

    def parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        """What of a batch is in memory at a time."""
        return batch.chunk(self.config.accumulate)

    def enlarge(self, lr: Tensor) -> Tensor:
        """I_SR of LR pictures."""
        made: Tensor = self.sr_network(lr.contiguous(memory_format=torch.channels_last))
        return made

    def seen(self, lr: Tensor) -> Tensor:
        """LR pictures as the encoders see them while they learn, see `--encoder-view`."""
        if self.config.encoder_view == "paper":
            return lr
        return bicubic(lr, SCALE)

    def quality_texts(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The features of the words Q- and Q+, the last rows of all texts' features."""
        bad, good = len(self.config.bad), len(self.config.good)
        return texts[-bad - good : -good], texts[-good:]

    def texts_of(self, batch: Batch) -> Tensor:
        """Tokens of all texts of a step on `batch`: LR captions, HR captions, Q- and Q+ words."""
        frozen = not self.encoder_parameters
        captions = batch.lr_captions if frozen else [*batch.lr_captions, *batch.hr_captions]
        return torch.cat([self.encoders.tokens(captions), self.words])

    def state(self) -> dict[str, dict[str, object]]:
        """What a checkpoint holds."""
        state = {
            "sr": self.sr_network.state_dict(),
            "encoders": self.encoders.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return state | ({"ema": self.average.state_dict()} if self.average is not None else {})

    def load_state(self, state: dict[str, dict[str, object]]) -> None:
        """Continue from `state`. Raises KeyError, RuntimeError, …: it is of other networks."""
        self.sr_network.load_state_dict(state["sr"])
        self.encoders.load_state_dict(state["encoders"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
