"""Time a training step by region, and compare it with the same step written plainly.

    python -m benchmarks.train_step                # a small setting, for a CPU
    python -m benchmarks.train_step --setting paper --precision bfloat16 --compile default

Weights and pictures are random: time does not depend on them. Data loading is excluded. The floor
of a region is its arithmetic at the rate of one large matrix product on the same device in the same
run; for the optimizer, its bytes at the rate of a large copy.
"""

import statistics
import sys
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal
from unittest import mock

import open_clip
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from lasr.cli import Command
from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.weights.clip import Clip
from schemas.manifest import PATCH_SIZE
from trainer.config import TrainConfig
from trainer.data.dataset import Batch
from trainer.losses import content_encoders, content_sr, quality_encoders, quality_sr
from trainer.models.encoders import Encoders
from trainer.models.rrdb import RRDB
from trainer.models.vgg import VGG, WIDTHS, vgg_term
from trainer.plan import check_compiler
from trainer.step import TrainStep

WORDS = ["sky", "water", "wood", "stone", "leaf", "metal", "cloud", "grass", "sand", "brick"]


class BenchmarkConfig(BaseModel):
    """Parameters of `benchmarks.train_step`."""

    setting: Literal["small", "paper"] = Field(
        "small", description="paper: ViT-L/14, RRDB-23, VGG19; small: the same shapes, narrower"
    )
    batch_size: int | None = Field(
        None, ge=2, description="LR patches per step (default: 16, small: 4)"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="as for lasr train")
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = Field(
        "off", description="as for lasr train; the plain step is never compiled"
    )
    rounds: int = Field(7, ge=1, description="rounds in which the two steps take turns")
    steps: int = Field(2, ge=1, description="steps per round")
    device: Device = Field("auto", description="where the networks run")


def networks(setting: str, device: torch.device) -> tuple[RRDB, Encoders, VGG]:
    """Return SR network, encoders and VGG with seeded random weights."""
    if setting == "paper":
        shape = open_clip.get_model_config("ViT-L-14-quickgelu")
        sizes, widths = (64, 23, 32), WIDTHS
    else:
        text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}
        vision = {"image_size": 224, "layers": 4, "width": 192, "head_width": 64, "patch_size": 14}
        shape = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
        sizes, widths = (16, 2, 16), tuple(width // 8 for width in WIDTHS)
    torch.manual_seed(0)
    with device:
        clip = open_clip.CLIP(**shape).eval()
        tokenize = open_clip.get_tokenizer("ViT-L-14")
        encoders = Encoders(Clip(clip, lambda picture: picture, tokenize, "random"))
        return RRDB(*sizes), encoders.to(device), VGG(widths=widths).to(device)


def random_batch(size: int, seed: int) -> Batch:
    """Return a batch of random pictures and captions."""
    chance = torch.Generator().manual_seed(seed)
    lr, hr = (torch.rand(size, 3, side, side, generator=chance) for side in PATCH_SIZE.values())
    picks = torch.randint(len(WORDS), (2, size, 24), generator=chance).tolist()
    far, near = ([", ".join(WORDS[i] for i in row) for row in role] for role in picks)
    rows = list(range(size))
    return Batch(lr, hr, far, near, rows, rows)


class PlainStep:
    """The step as written by someone who follows the paper equation by equation.

    It calls the encoders once for each kind of picture or text. The SR terms go backward through
    all parameters, and their gradients of the encoders are discarded before the encoders' own
    terms. Adam has its defaults, and the numbers are fetched at every step.
    """

    def __init__(self, config: TrainConfig, sr_network: nn.Module, encoders: Encoders, vgg: VGG):
        self.config, self.sr_network, self.encoders, self.vgg = config, sr_network, encoders, vgg
        self.sr_optimizer = torch.optim.Adam(sr_network.parameters(), lr=config.lr)
        trained = [p for p in encoders.parameters() if p.requires_grad]
        self.encoder_optimizer = torch.optim.Adam(trained, lr=config.lr)
        self.tokenize = open_clip.get_tokenizer("ViT-L-14")

    def texts(self, texts: list[str], device: torch.device) -> Tensor:
        return self.encoders.encode(self.tokenize(texts).to(device))

    def __call__(self, batch: Batch) -> dict[str, float]:
        config, encoders, device = self.config, self.encoders, next(self.vgg.buffers()).device
        lr, hr = batch.lr.to(device), batch.hr.to(device)
        with torch.autocast(
            device.type, torch.bfloat16, enabled=config.precision == "bfloat16", cache_enabled=False
        ):
            sr = self.sr_network(lr)
            f_lr, f_hr, f_sr = encoders.images(lr), encoders.images(hr), encoders.images(sr)
            c_lr = self.texts(batch.lr_captions, device)
            c_hr = self.texts(batch.hr_captions, device)
            q_minus, q_plus = self.texts(config.bad, device), self.texts(config.good, device)
            terms = {
                "content_encoders": content_encoders(f_lr, f_hr, c_lr, c_hr),
                "quality_encoders": quality_encoders(f_lr, f_hr, q_minus, q_plus),
                "content_sr": content_sr(f_sr, c_lr),
                "quality_sr": quality_sr(f_sr, q_minus, q_plus),
                "vgg": vgg_term(self.vgg, sr, lr),
            }
        of_encoders = 0.5 * terms["content_encoders"] + 0.5 * terms["quality_encoders"]
        of_sr = 0.5 * terms["content_sr"] + 0.5 * terms["quality_sr"] + 0.1 * terms["vgg"]
        self.sr_optimizer.zero_grad()
        of_sr.backward()
        self.encoder_optimizer.zero_grad()
        of_encoders.backward()
        self.sr_optimizer.step()
        self.encoder_optimizer.step()
        return {name: term.item() for name, term in terms.items()}


def wait(device: torch.device) -> None:
    """Block until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Called with a name: a context manager that records the milliseconds of a region."""

    def __init__(self, device: torch.device):
        self.device = device
        self.found: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wait(self.device)
        started = time.perf_counter()
        yield
        wait(self.device)
        self.found[name].append(1e3 * (time.perf_counter() - started))


def count_flops(settings: TrainConfig, setting: str, batch: Batch) -> dict[str, int]:
    """Count floating-point operations of each region, on tensors of the meta device."""
    found: dict[str, int] = defaultdict(int)

    @contextmanager
    def count(name: str) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter:
            yield
        found[name] += counter.get_total_flops()

    plain = settings.model_copy(update={"compile": "off", "precision": "float32"})
    with mock.patch.object(torch, "autocast", lambda *a, **k: nullcontext()):  # has no meta device
        step = TrainStep(plain, *networks(setting, torch.device("meta")), region=count)
        lr, hr, tokens = (x.to("meta") for x in (batch.lr, batch.hr, step.texts_of(batch)))
        step.gradients(lr, hr, tokens)
    return found


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of living tensors, after each operation; works on the meta device.

    Tensors that existed before are counted by `add`. What a kernel takes for itself is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return result


def count_memory(settings: TrainConfig, setting: str, batch: Batch) -> int:
    """Count the most bytes that a step has in memory in float32, on tensors of the meta device.

    Weights, gradients (also those of the step before), Adam's moments and activations.
    """
    plain = settings.model_copy(update={"compile": "off", "precision": "float32"})
    with mock.patch.object(torch, "autocast", lambda *a, **k: nullcontext()):  # has no meta device
        step = TrainStep(plain, *networks(setting, torch.device("meta")))
        count = PeakBytes()
        for network in (step.sr_network, step.encoders, step.vgg):
            for parameter in network.parameters():
                count.add(parameter)
        trained = [*step.sr_parameters, *step.encoder_parameters]
        moments = 2 * sum(parameter.nbytes for parameter in trained)
        with count:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)  # of the step before
            lr, hr, tokens = (x.to("meta") for x in (batch.lr, batch.hr, step.texts_of(batch)))
            step.optimizer.zero_grad()
            step.gradients(lr, hr, tokens)
    return count.peak + moments


def rates(device: torch.device, precision: str) -> tuple[float, float]:
    """Measure FLOP/s of a large matrix product and byte/s (read and written) of a large copy."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    product = best(lambda: a @ b, device)
    copy = best(lambda: target.copy_(source), device)
    return 2 * side**3 / product, 2 * source.nbytes / copy


def best(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of ten calls."""
    found = []
    for _ in range(10):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - started)
    return min(found)


def timed(step: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Return milliseconds per step, over `steps` steps launched one after the other."""
    wait(device)
    started = time.perf_counter()
    for number in range(steps):
        step(number)
    wait(device)
    return 1e3 * (time.perf_counter() - started) / steps


def spread(times: list[float], digits: int = 1) -> str:
    """Format median, minimum and maximum."""
    middle, least, most = (f(times) for f in (statistics.median, min, max))
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def run(config: BenchmarkConfig) -> None:
    """Measure and print two tables in Markdown."""
    device = pick_device(config.device)
    if config.compile != "off":
        check_compiler(device, config.compile)
    torch.backends.cudnn.benchmark = True  # as in lasr train; the plain step profits too
    size = config.batch_size or (16 if config.setting == "paper" else 4)
    chosen = {"batch_size": size, "precision": config.precision, "compile": config.compile}
    settings = TrainConfig.model_validate({"manifest": "none"} | chosen)
    batches = [random_batch(size, seed) for seed in range(config.steps)]
    flops = count_flops(settings, config.setting, batches[0])
    memory = count_memory(settings, config.setting, batches[0])

    stopwatch = Stopwatch(device)
    ours = TrainStep(settings, *networks(config.setting, device))
    plain = PlainStep(settings, *networks(config.setting, device))
    tokens = [ours.texts_of(batch) for batch in batches]  # in training, prefetch does this
    difference = check_equal(ours, plain, batches, tokens)

    times: dict[str, list[float]] = {"this project": [], "written plainly": []}
    for _ in range(config.rounds):
        times["written plainly"].append(timed(lambda i: plain(batches[i]), config.steps, device))
        times["this project"].append(
            timed(lambda i: ours(batches[i], tokens[i]), config.steps, device)
        )
    ours.region = stopwatch
    for _ in range(max(config.rounds, 3)):
        ours(batches[0], tokens[0])
    report(config, device, ours, flops, stopwatch.found, times, difference)
    print(f"memory by count, in float32: {memory / 1e9:.1f} GB")
    if device.type == "cuda":
        print(f"memory measured, of both steps: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def check_equal(
    ours: TrainStep, plain: PlainStep, batches: list[Batch], tokens: list[Tensor]
) -> float:
    """Return the largest difference of a loss term over a few steps, which also warm up.

    Raises UserError if the two steps give different losses.
    """
    worst = 0.0
    for batch, of_batch in zip(batches, tokens, strict=True):
        expected = plain(batch)
        numbers = ours(batch, of_batch).tolist()
        found = dict(zip(ours.names, numbers, strict=True))
        worst = max([worst, *(abs(found[name] - value) for name, value in expected.items())])
    bound = 2e-3 if ours.config.precision == "float32" else 0.1
    if not worst < bound:
        raise UserError(
            f"the two steps give different losses, by up to {worst:.2g}", "report this as a bug"
        )
    return worst


def report(
    config: BenchmarkConfig,
    device: torch.device,
    step: TrainStep,
    flops: dict[str, int],
    regions: dict[str, list[float]],
    times: dict[str, list[float]],
    difference: float,
) -> None:
    """Print the tables."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    per_second, bytes_per_second = rates(device, config.precision)
    print(
        f"{name}{threads}, PyTorch {torch.__version__}: setting {config.setting},"
        f" {config.precision}, compile {config.compile}, batch {step.config.batch_size};"
        f" a matrix product runs at {per_second / 1e12:.3g} TFLOP/s, a copy at"
        f" {bytes_per_second / 1e9:.3g} GB/s\n"
    )
    # Adam reads weight, gradient and two moments and writes three; the norm reads the gradient.
    moved = 8 * 4 * sum(p.numel() for p in [*step.sr_parameters, *step.encoder_parameters])
    print("| region | ms: median (range) | GFLOP | floor, ms | of the floor's rate |")
    print("|---|---|---|---|---|")
    total = 0.0
    for region, found in regions.items():
        floor = 1e3 * (
            moved / bytes_per_second if region == "optimizer" else flops[region] / per_second
        )
        total += floor
        work = f"{moved / 1e9:.3g} GB" if region == "optimizer" else f"{flops[region] / 1e9:.4g}"
        share = f"{100 * floor / statistics.median(found):.0f} %"
        print(f"| {region} | {spread(found)} | {work} | {floor:.2f} | {share} |")
    print(f"| all | {sum(map(statistics.median, regions.values())):.1f} |"
          f" {sum(flops.values()) / 1e9:.4g} | {total:.2f} | |\n")  # fmt: skip
    print("| whole step | ms: median (range) |")
    print("|---|---|")
    for what, found in times.items():
        print(f"| {what} | {spread(found)} |")
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"\nwritten plainly / this project: {spread(ratios, 2)}")
    print(f"largest difference of a loss term: {difference:.2g}")


main = Command(BenchmarkConfig, run, name="python -m benchmarks.train_step", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
