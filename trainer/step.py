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
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.profiler import record_function

from lasr.device import autocast, pick_precision
from trainer import losses
from trainer.config import TrainConfig
from trainer.data.dataset import Batch
from trainer.distributed import World
from trainer.models.compiled import Captured, compile_blocks
from trainer.models.encoders import Encoders
from trainer.models.vgg import VGG, vgg_term
from trainer.sheets import colour_shift

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
        vgg: VGG,
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
            config.weight_content, config.weight_quality, config.weight_vgg
        )
        self.sr_parameters, self.encoder_parameters = (
            [p for p in network.parameters() if p.requires_grad]
            for network in (sr_network, encoders)
        )
        # Fused: one kernel for all tensors, which also skips the update if a device flag says so.
        self.optimizer = torch.optim.Adam(
            [*self.sr_parameters, *self.encoder_parameters], lr=config.lr, fused=True
        )
        # Not AveragedModel: it counts on the host, which waits for a copy at each step.
        self.average = copy.deepcopy(sr_network).requires_grad_(False) if config.ema else None
        self.move_average = get_ema_multi_avg_fn(config.ema)
        self.device = next(sr_network.parameters()).device
        precision = pick_precision(config.precision, self.device, old_gpu="float32")
        self.autocast = autocast(self.device, precision)
        self.words = encoders.tokens([*config.bad, *config.good])
        self.names: list[str] = []  # of the numbers that the last step returned
        if config.compile != "off":
            for network in (self.sr_network, vgg, *encoders.towers(), self.frozen_images.visual):
                compile_blocks(network, config.compile)
        self.launch: Callable[..., Tensor] = self.compute
        # PyTorch's other modes have graphs of their own; collectives are not captured.
        one_gpu = self.device.type == "cuda" and self.world.size == 1
        if config.cuda_graph == "auto" and one_gpu and config.compile in ("off", "default"):
            self.launch = Captured(self.compute)

    def __call__(self, batch: Batch, tokens: Tensor, stop: bool = False) -> Tensor:
        """Train on this rank's slice of a batch and return numbers for the log.

        tokens: those of `texts_of(batch)`. stop: whether this process was asked to stop; the mean
        over ranks is among the numbers, so all ranks stop after the same step. Returns a float32
        vector on the device, the same on all ranks, with an entry for each of `names`. If one of
        them is not finite, no weight has changed.
        """
        inputs = (x.to(self.device, non_blocking=True) for x in (batch.lr, batch.hr, tokens))
        return self.launch(*inputs, torch.full((), float(stop), device=self.device))

    def compute(self, lr: Tensor, hr: Tensor, tokens: Tensor, stop: Tensor) -> Tensor:
        """The step itself, of inputs on the device; `stop` is 1 or 0."""
        self.optimizer.zero_grad()  # frees the last gradients before activations need the memory
        sr, terms, total = self.gradients(lr, hr, tokens)
        with self.region("optimizer"), torch.no_grad():
            numbers = terms | {
                "total": total,
                "colour_shift": colour_shift(sr, lr),
                "stop": stop,
            }
            averages = self.world.average(torch.stack([x.detach() for x in numbers.values()]))
            norms = {"gradient_norm_sr": _norm(self.sr_parameters)}
            if self.encoder_parameters:
                norms["gradient_norm_encoders"] = _norm(self.encoder_parameters)
            self.names = [*numbers, *norms]
            result = torch.cat([averages, torch.stack(list(norms.values()))])
            self.update(result)
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
        texts, terms = self.encoder_terms(lr, hr, tokens)
        total, finish_encoders = zero, None
        if terms:
            loss = weights.total(terms["content_encoders"], terms["quality_encoders"], zero)
            with self.region("backward, encoders"):
                loss.backward()
            terms, total = {name: term.detach() for name, term in terms.items()}, loss.detach()
            del loss  # with the activations
            finish_encoders = self.world.average_gradients(self.encoder_parameters)
        sr, sr_terms = self.sr_terms(lr, texts)
        loss = weights.total(sr_terms["content_sr"], sr_terms["quality_sr"], sr_terms["vgg"])
        with self.region("backward, SR network"):
            loss.backward()
        finish_sr = self.world.average_gradients(self.sr_parameters)
        if finish_encoders:
            finish_encoders()
        finish_sr()
        terms |= {name: term.detach() for name, term in sr_terms.items()}
        return sr.detach(), terms, total + loss.detach()

    def encoder_terms(
        self, lr: Tensor, hr: Tensor, tokens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of all texts, as constants, and the terms that move the encoders.

        Equations (1), section 3.3, and (3), section 3.4; no terms if the encoders are frozen.
        """
        region, encoders, n = self.region, self.encoders, len(lr)
        with self.autocast, region("text encoder"):
            texts = encoders.encode(tokens)
        if not self.encoder_parameters:
            return texts, {}
        with self.autocast:
            with region("image encoder, LR"):
                f_lr = encoders.images(lr)
            with region("image encoder, HR"):
                f_hr = encoders.images(hr)
        with region("losses"):
            # One collective for all features that these terms need.
            features = torch.cat([f_lr, f_hr, texts[:n], texts[n : 2 * n]], dim=1)
            gathered = self.world.gather(losses.full_precision(features))
            f_lr, f_hr, c_lr, c_hr = gathered.chunk(4, dim=1)
            q_minus, q_plus = self.quality_texts(texts)
            terms = {
                "content_encoders": losses.content_encoders(f_lr, f_hr, c_lr, c_hr),
                "quality_encoders": losses.quality_encoders(f_lr, f_hr, q_minus, q_plus),
            }
        return texts.detach(), terms

    def sr_terms(self, lr: Tensor, texts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The pictures I_SR and the terms that move the SR network. texts: constant features.

        Equations (2), section 3.3, and (4), section 3.4, and the VGG term, section 3.5.
        """
        region, n = self.region, len(lr)
        with self.autocast:
            with region("SR network"):
                sr = self.sr_network(lr.contiguous(memory_format=torch.channels_last))
            with region("image encoder, SR"):
                f_sr = self.frozen_images(sr)
            with region("VGG"), torch.set_grad_enabled(self.weights.vgg > 0):
                vgg = vgg_term(self.vgg, sr, lr, self.config.vgg_distance)
        with region("losses"):
            features = losses.full_precision(torch.cat([f_sr, texts[:n]], dim=1))
            f_sr, c_lr = self.world.gather(features).chunk(2, dim=1)
            terms = {
                "content_sr": losses.content_sr(f_sr, c_lr),
                "quality_sr": losses.quality_sr(f_sr, *self.quality_texts(texts)),
                "vgg": vgg,
            }
        return sr, terms

    def quality_texts(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The features of the words Q- and Q+, the last rows of all texts' features."""
        bad, good = len(self.config.bad), len(self.config.good)
        return texts[-bad - good : -good], texts[-good:]

    def update(self, numbers: Tensor) -> None:
        """Adam's update, skipped on the device if one of `numbers` is not finite."""
        # The flag that torch.amp.GradScaler passes to a fused optimizer: 1 skips the update.
        self.optimizer.found_inf = (~numbers.isfinite().all()).float()  # type: ignore[attr-defined]
        # Fused Adam counts steps on the device, as a graph needs, and asks to be told of one.
        (group,) = self.optimizer.param_groups
        group["capturable"] = (
            self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        )
        self.optimizer.step()
        group["capturable"] = False
        if self.average is not None:
            average, network = (list(x.parameters()) for x in (self.average, self.sr_network))
            self.move_average(average, network, 0)
            for mean, now in zip(self.average.buffers(), self.sr_network.buffers(), strict=True):
                mean.copy_(now)

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
        for parameter, moments in self.optimizer.state.items():  # PyTorch does not compare shapes
            if moments["exp_avg"].shape != parameter.shape:
                raise ValueError("its optimizer has moments of other shapes")
        if self.average is not None:
            self.average.load_state_dict(state["ema"])


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
