"""Run methods on pictures, and score their outputs. What is known already is not computed again."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lasr.cli import progress
from lasr.device import device_name
from lasr.errors import UserError, one_line
from lasr.files import atomic_path
from lasr.marks import in_picture
from lasr.ownership import is_ours
from lasr.pictures.find import find_pictures
from lasr.pictures.read import read_rgb
from lasr.weights.digests import sha256
from schemas.manifest import SCALE
from trainer.evaluate.methods import BICUBIC, Method
from trainer.evaluate.metrics import Metric
from trainer.evaluate.resize import enlarge
from trainer.evaluate.scores import MADE, Cache, Score
from trainer.evaluate.testset import Picture, match
from trainer.models.load import load_model
from trainer.sheets import to_uint8
from trainer.upscale.tiles import upscale

log = logging.getLogger(__name__)

WARM_UP = 64  # pixels: side of the square that is enlarged before times are measured


@dataclass(frozen=True)
class Output:
    """A method's SR picture, and what making it took (None if another program made it)."""

    path: Path
    seconds: float | None = None
    parameters: int | None = None
    device: str | None = None


class Evaluator:
    """Scores methods on pictures. A failure is logged and added to `problems`; others go on."""

    def __init__(self, folder: Path, passes: int, tile: int, device: torch.device):
        """folder: of the evaluation. passes: how often networks run, each enlarging by SCALE."""
        self._folder, self._passes, self._tile, self._device = folder, passes, tile, device
        self._scores = Cache(folder / "scores.jsonl")
        self.problems: list[UserError] = []

    def report(self, error: UserError, where: str = "") -> None:
        """Log a problem, and remember it."""
        problem = UserError(f"{where}: {error.problem}" if where else error.problem, error.fix)
        log.warning("%s", one_line(problem, limit=1000))
        self.problems.append(problem)

    def evaluate(
        self, methods: Sequence[Method], pictures: Sequence[Picture], metrics: Sequence[Metric]
    ) -> list[Score]:
        """Score every method on every picture.

        Raises UserError before anything is computed: ambiguous file names.
        """
        if any(metric.needs_reference for metric in metrics):
            for picture in pictures:
                if picture.reference is None:
                    self.report(
                        UserError(
                            f"{picture.name}: no file in --reference has its name",
                            "add one, or leave the picture out",
                        )
                    )
        sources = [self._source(method, pictures) for method in methods]
        found: list[Score] = []
        with progress(len(methods) * len(pictures), "scored", "img") as bar:
            for method, source in zip(methods, sources, strict=True):
                for picture in pictures:
                    try:
                        found += self._score(method, picture, source(picture), metrics)
                    except UserError as error:
                        self.report(error, f"{method.name}, {picture.name}")
                    bar.update()
        return found

    def _source(self, method: Method, pictures: Sequence[Picture]) -> Callable[[Picture], Output]:
        """Return the function that gives the method's output for a picture."""
        if not method.is_folder:
            folder = self._folder / "sr" / method.name
            return MethodRunner(method, folder, self._passes, self._tile, self._device).output
        files = list(find_pictures([Path(method.source)]))
        matched = match([picture.name for picture in pictures], files, method.name)

        def find(picture: Picture) -> Output:
            if picture.name not in matched:
                raise UserError(
                    f"no file in {method.source} has its name", "see docs/evaluate.md for names"
                )
            return Output(matched[picture.name])

        return find

    def _score(
        self, method: Method, picture: Picture, output: Output, metrics: Sequence[Metric]
    ) -> list[Score]:
        """Score one output by each metric that applies. Raises UserError: its size is wrong."""
        content = f"{sha256(output.path)} of {picture.identity} x{picture.scale}"
        keys = {}
        for metric in metrics:
            if not metric.needs_reference:
                keys[metric.name] = f"{metric.identity}: {content}"
            elif picture.reference is not None:
                reference = sha256(picture.reference)
                keys[metric.name] = f"{metric.identity}: {content} against {reference}"
        missing = [m for m in metrics if m.name in keys and not self._scores.get(keys[m.name])]
        if missing:
            pixels, target = _read_pair(picture, output)
            for metric in missing:
                try:
                    score = metric.score(pixels, target)
                except UserError as error:
                    self.report(error, f"{method.name}, {picture.name}")
                else:
                    self._scores.add(keys[metric.name], {"score": score, "device": metric.device})
        known = {name: self._scores.get(key) for name, key in keys.items()}
        return [
            Score(
                method=method.name,
                image=picture.name,
                metric=metric.name,
                title=metric.title,
                higher_is_better=metric.higher_is_better,
                score=value["score"],
                metric_version=metric.version,
                metric_weights=metric.weights,
                convention=metric.convention,
                device=value["device"],
                parameters=output.parameters,
                seconds=output.seconds,
                made_on=output.device,
                image_path=str(picture.image) if picture.image else None,
                output_path=str(output.path),
                reference_path=str(picture.reference) if picture.reference else None,
            )
            for metric in metrics
            if (value := known.get(metric.name)) is not None
        ]


class MethodRunner:
    """Runs a network or bicubic. Outputs of an earlier run are reused if nothing has changed."""

    def __init__(self, method: Method, folder: Path, passes: int, tile: int, device: torch.device):
        """folder: receives the SR pictures."""
        self._method, self._folder, self._device = method, folder, device
        self._passes, self._tile = passes, tile
        self._identity = method.weights.identity if method.weights else BICUBIC
        self._outputs = Cache(folder / MADE)
        self._run: Callable[[Tensor], Tensor] | None = None
        self._parameters: int | None = None

    def output(self, picture: Picture) -> Output:
        """Return the SR picture, a PNG in the folder.

        Raises UserError: the picture or the weights cannot be read, or the result is not finite.
        """
        path = self._folder / f"{picture.name}.png"
        key = f"{self._identity}, {self._passes} times, {picture.name}: {picture.identity}"
        known = self._outputs.get(key)
        if known is None or not path.is_file() or sha256(path) != known["output"]:
            pixels = picture.read()
            run = self._run or self._start(pixels)
            begin = time.perf_counter()
            enlarged = run(pixels)
            seconds = time.perf_counter() - begin
            with atomic_path(path, self._is_ours) as temporary:
                Image.fromarray(to_uint8(enlarged)).save(temporary, format="PNG", **in_picture())
            known = {
                "output": sha256(path),
                "seconds": seconds,
                "parameters": self._parameters,
                "device": device_name(self._device) if self._parameters else "CPU",
            }
            self._outputs.add(key, known)
        return Output(path, known["seconds"], known["parameters"], known["device"])

    def _is_ours(self, path: Path) -> bool:
        return is_ours(path) or sha256(path) in self._outputs.all("output")

    def _start(self, picture: Tensor) -> Callable[[Tensor], Tensor]:
        """Load the network, and enlarge a corner of the picture as a warm-up."""
        if self._method.weights is None:
            self._run = lambda picture: enlarge(picture, SCALE**self._passes)
        else:
            model = load_model(self._method.weights)
            if model.scale != SCALE:
                raise UserError(
                    f"{self._method.source}: a x{model.scale} network", f"give x{SCALE} networks"
                )
            network = model.fitted().eval().to(self._device)
            self._parameters = sum(weight.numel() for weight in network.parameters())

            def run(picture: Tensor) -> Tensor:
                for _ in range(self._passes):
                    picture = upscale(network, picture.float(), self._tile)
                return picture

            self._run = run
        self._run(picture[:, :WARM_UP, :WARM_UP])
        return self._run


def _read_pair(picture: Picture, output: Output) -> tuple[Tensor, Tensor | None]:
    """Read output and reference, of one size. Raises UserError: unreadable, or a wrong size."""
    pixels = read_rgb(output.path)
    target = None if picture.reference is None else read_rgb(picture.reference)
    if target is None:
        height, width = (side * picture.scale for side in picture.read().shape[-2:])
        expected = f"{picture.scale} times the LR picture is {width}x{height}"
    else:
        height, width = target.shape[-2:]
        expected = f"its reference is {width}x{height}"
    if pixels.shape[-2:] != (height, width):
        raise UserError(
            f"{output.path}: is {pixels.shape[-1]}x{pixels.shape[-2]}, but {expected}",
            "give an output of that size",
        )
    return pixels, target
