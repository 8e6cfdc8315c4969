"""Score methods side by side: networks, bicubic, folders of other methods' outputs.

python -m trainer.evaluate --images lr/ --weights bicubic data/runs/mine --outputs SeeSR=see/out
python -m trainer.evaluate --reference Set5/ --weights bicubic --metrics psnr ssim

The paper's metrics come through pyiqa (the extra `evaluate`); `python -m trainer.evaluate.metrics
fetch` brings their weights. The same command carries on where it was stopped. See docs/evaluate.md.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from lasr.cli import Command, progress
from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.pictures.find import find_pictures
from lasr.pictures.read import read_rgb
from lasr.weights.digests import sha256
from lasr.weights.locate import locate_all
from schemas.manifest import SCALE
from trainer.evaluate import scores, testset
from trainer.evaluate.ledger import Ledger
from trainer.evaluate.matching import match
from trainer.evaluate.methods import Maker, Method, Output, parse_methods
from trainer.evaluate.metrics import PAPER, Colour, Metric, MetricMissing, load_metric
from trainer.evaluate.scores import Score
from trainer.evaluate.testset import Picture

logger = logging.getLogger(__name__)


class EvaluateConfig(BaseModel):
    """What `trainer.evaluate` takes."""

    images: list[Path] = Field(
        [],
        description="LR pictures, or folders of them (default: made from --reference by"
        " MATLAB's antialiased bicubic)",
    )
    reference: list[Path] = Field(
        [], description="the true HR pictures, or folders of them, matched by name"
    )
    weights: list[str] = Field(
        [],
        description="methods that run here, [NAME=]WHAT each: a weights file or name, a run's"
        " folder, a folder of step*.safetensors (one method each, for a curve), or bicubic",
    )
    outputs: list[str] = Field(
        [], description="methods that ran elsewhere, [NAME=]FOLDER of their output pictures each"
    )
    metrics: list[str] = Field(
        [],
        description=f"among {', '.join(PAPER)}, or any of pyiqa (default: all of the paper's;"
        " those that compare need --reference)",
    )
    out: Path = Field(
        Path("data/evaluation"), description="folder for scores, tables and SR pictures"
    )
    colour: Colour = Field(
        "ycbcr",
        description="what PSNR and SSIM compare: Y of MATLAB's rgb2ycbcr, Y of YIQ (full"
        " range, pyiqa's own default), or RGB",
    )
    crop_border: int | None = Field(
        None,
        ge=0,
        description="pixels that PSNR and SSIM leave out at each border (default: the scale)",
    )
    protocol: testset.Protocol = Field(
        "rgb",
        description="how LR is made from --reference: 8-bit RGB, or luma: Y alone and"
        " unrounded, as SRCNN",
    )
    passes: int = Field(1, ge=1, le=3, description="2 compares x16, networks run twice (E.2)")
    tile: int = Field(256, ge=16, description="side of the squares that networks enlarge at once")
    device: Device = Field("auto", description="where networks and metrics run")

    @model_validator(mode="after")
    def _complete(self) -> "EvaluateConfig":
        if not (self.weights or self.outputs):
            raise ValueError("nothing to score: give --weights, --outputs or both")
        if not (self.images or self.reference):
            raise ValueError("no pictures: give --images, --reference or both")
        lacking = [name for name in self.metrics if name in PAPER and PAPER[name].reference]
        if lacking and not self.reference:
            raise ValueError(f"--metrics {' '.join(lacking)}: needs --reference")
        if self.protocol == "luma" and self.images:
            raise ValueError("--protocol luma: makes LR from --reference; leave --images out")
        return self

    @property
    def scale(self) -> int:
        """By how much outputs are larger than LR pictures."""
        return int(SCALE**self.passes)

    @property
    def metric_names(self) -> list[str]:
        """Those asked for, or the paper's that can be had without or with references."""
        every = [name for name, known in PAPER.items() if self.reference or not known.reference]
        return list(dict.fromkeys(self.metrics)) or every


def run(config: EvaluateConfig) -> None:
    """Score every method on every picture; what fails is named and stops nothing else.

    Raises UserError at the end where something that was asked for is missing.
    """
    device = pick_device(config.device)
    methods = parse_methods(config.weights, config.outputs)
    locate_all(*((method.source, "sr") for method in methods if method.is_network))
    if config.images:
        pictures = testset.given(config.images, config.reference, config.scale)
    else:
        pictures = testset.made(config.reference, config.protocol, config.out, config.scale)
    problems: list[str] = []
    metrics = _load_metrics(config, device, problems)
    if any(metric.needs_reference for metric in metrics):
        for picture in pictures:
            if picture.reference is None:
                _note(problems, f"{picture.name}: no file in --reference has its name")
    ledger = Ledger(config.out / "scores.jsonl")
    found: list[Score] = []
    # All weights and folders are looked at before anything is computed.
    answers = [_answers(method, pictures, config, device) for method in methods]
    with progress(len(methods) * len(pictures), "scored", "img") as bar:
        for method, answer in zip(methods, answers, strict=True):
            for picture in pictures:
                try:
                    output = answer(picture)
                    found += _score(method, picture, output, metrics, ledger, problems)
                except UserError as error:
                    _note(problems, f"{method.name}, {picture.name}: {error}")
                bar.update()
    scores.write(config.out, found)
    print(scores.markdown(found))
    print(f"\nin {config.out}: means.md, means and scores as .csv and .parquet")
    if problems:
        more = f" and {len(problems) - 1} more, named above" if len(problems) > 1 else ""
        raise UserError(f"not all was scored: {problems[0]}{more}")


def _note(problems: list[str], problem: str) -> None:
    logger.warning("%s", " ".join(problem.split()))
    problems.append(problem)


def _load_metrics(
    config: EvaluateConfig, device: torch.device, problems: list[str]
) -> list[Metric]:
    border = config.scale if config.crop_border is None else config.crop_border
    # A reference that is Y already has no colour to convert.
    colour = "rgb" if config.protocol == "luma" else config.colour
    metrics = []
    for name in config.metric_names:
        try:
            metrics.append(load_metric(name, device, colour, border))
        except MetricMissing as error:
            _note(problems, str(error))
    return metrics


def _answers(
    method: Method, pictures: list[Picture], config: EvaluateConfig, device: torch.device
) -> Callable[[Picture], Output]:
    """What gives the method's output for a picture. Raises UserError: weights, names or folder."""
    if not method.is_folder:
        folder = config.out / "sr" / method.name
        return Maker(method, folder, config.passes, config.tile, device).make
    files = list(find_pictures([Path(method.source)]))
    matched = match([picture.name for picture in pictures], files, method.name)

    def find(picture: Picture) -> Output:
        if picture.name not in matched:
            raise UserError(f"no file in {method.source} has its name; see docs/evaluate.md")
        return Output(matched[picture.name])

    return find


def _score(
    method: Method,
    picture: Picture,
    output: Output,
    metrics: list[Metric],
    ledger: Ledger,
    problems: list[str],
) -> list[Score]:
    """The scores of one output; known ones are not computed again. Raises UserError: its size."""
    reference = picture.reference
    content = f"{sha256(output.path)} of {picture.identity} x{picture.scale}"
    keys = {}
    for metric in metrics:
        if reference is not None and metric.needs_reference:
            keys[metric.name] = f"{metric.identity}: {content} against {sha256(reference)}"
        elif not metric.needs_reference:
            keys[metric.name] = f"{metric.identity}: {content}"
    if any(ledger.get(key) is None for key in keys.values()):
        pixels, target = _read_pair(picture, output)
        for metric in metrics:
            key = keys.get(metric.name)
            if key is None or ledger.get(key) is not None:
                continue
            try:
                score = metric.score(pixels, target)
                ledger.add(key, {"score": score, "device": metric.device})
            except UserError as error:
                _note(problems, f"{method.name}, {picture.name}: {error}")
    known = {name: ledger.get(key) for name, key in keys.items()}
    return [
        Score(
            method=method.name,
            image=picture.name,
            metric=metric.name,
            title=metric.title,
            higher_is_better=metric.higher_is_better,
            score=answer["score"],
            metric_version=metric.version,
            metric_weights=metric.weights,
            convention=metric.convention,
            device=answer["device"],
            parameters=output.parameters,
            seconds=output.seconds,
            made_on=output.device,
            image_path=str(picture.image) if picture.image else None,
            output_path=str(output.path),
            reference_path=str(reference) if reference else None,
        )
        for metric in metrics
        if (answer := known.get(metric.name)) is not None
    ]


def _read_pair(picture: Picture, output: Output) -> tuple[Tensor, Tensor | None]:
    """Output and reference, of one size. Raises UserError: unreadable, or the size is wrong."""
    pixels = read_rgb(output.path)
    target = None if picture.reference is None else read_rgb(picture.reference)
    if target is None:
        height, width = (side * picture.scale for side in picture.read().shape[-2:])
        due = f"{picture.scale} times the picture's is {width}x{height}"
    else:
        height, width = target.shape[-2:]
        due = f"its reference's is {width}x{height}"
    if pixels.shape[-2:] != (height, width):
        size = f"{pixels.shape[-1]}x{pixels.shape[-2]}"
        raise UserError(f"{output.path}: its size is {size}, {due}; not scored")
    return pixels, target


main = Command(EvaluateConfig, run, name="lasr evaluate", about=__doc__, weights=True)

if __name__ == "__main__":
    sys.exit(main())
