"""Score methods side by side: networks, bicubic, and folders of other programs' outputs.

lasr evaluate --images lr/ --weights bicubic data/runs/mine --outputs SeeSR=see/out
lasr evaluate --reference Set5/ --weights bicubic --metrics psnr ssim

The paper's metrics come from pyiqa (the extra `evaluate`); `lasr metrics fetch` downloads their
weights. After an interruption the same command continues. See docs/evaluate.md.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, Field, model_validator

from lasr.cli import Command
from lasr.device import Device, pick_device
from lasr.errors import UserError, writing
from lasr.lock import sole_writer
from lasr.ownership import check_folder
from lasr.terminal.summary import counted
from lasr.weights.digests import sha256
from schemas.manifest import SCALE
from trainer.evaluate import scores, testset
from trainer.evaluate.methods import Method, locate_weights, parse_methods
from trainer.evaluate.metrics import METRICS, Colour, load_metric
from trainer.evaluate.pyiqa_backend import MetricUnavailable


class EvaluateConfig(BaseModel):
    """The flags of `lasr evaluate`."""

    SECTIONS: ClassVar = {
        "How networks run": ["passes", "tile"],
        "Conventions": ["colour", "crop_border", "protocol"],
    }

    images: list[Path] = Field(
        [],
        description="LR pictures, or folders of them (default: made from --reference by"
        " MATLAB's antialiased bicubic)",
    )
    reference: list[Path] = Field(
        [], description="HR pictures, or folders of them, matched to LR pictures by name"
    )
    weights: list[str] = Field(
        [],
        description="methods to run, [NAME=]SOURCE each: a weights file or name, a run's folder,"
        " a folder of step*.safetensors (one method each, for a curve), or bicubic",
    )
    outputs: list[str] = Field(
        [], description="outputs of other programs, [NAME=]FOLDER of pictures each"
    )
    metrics: list[str] = Field(
        [],
        description=f"{', '.join(METRICS)}, or any name of pyiqa (default: all named here; those"
        " that compare need --reference)",
    )
    out: Path = Field(
        Path("data/evaluation"), description="folder for scores, tables and SR pictures"
    )
    colour: Colour = Field(
        "ycbcr",
        description="what PSNR and SSIM compare: Y of MATLAB's rgb2ycbcr, Y of YIQ (full"
        " range, pyiqa's default), or RGB",
    )
    crop_border: int | None = Field(
        None,
        ge=0,
        description="pixels at each border that PSNR and SSIM leave out (default: the scale)",
    )
    protocol: testset.Protocol = Field(
        "rgb",
        description="how LR is made from --reference: in 8-bit RGB, or from Y alone and not"
        " rounded (luma), as SRCNN did",
    )
    passes: int = Field(
        1, ge=1, le=3, description="how often networks run; 2 enlarges x16 (appendix E.2)"
    )
    tile: int = Field(256, ge=16, description="side of the tiles that networks enlarge, pixels")
    device: Device = Field("auto", description="where networks and metrics run")

    @model_validator(mode="after")
    def _complete(self) -> "EvaluateConfig":
        if not (self.weights or self.outputs):
            raise ValueError("no method to score: give --weights, --outputs or both")
        if not (self.images or self.reference):
            raise ValueError("no pictures: give --images, --reference or both")
        comparing = [m for m in self.metrics if m in METRICS and METRICS[m].needs_reference]
        if comparing and not self.reference:
            raise ValueError(f"--metrics {' '.join(comparing)}: needs --reference")
        if self.protocol == "luma" and self.images:
            raise ValueError("--protocol luma makes LR from --reference: leave --images out")
        return self

    @property
    def scale(self) -> int:
        """How many times larger outputs are than LR pictures."""
        return int(SCALE**self.passes)

    @property
    def metric_names(self) -> list[str]:
        """The metrics asked for, or all of METRICS that can be computed with these pictures."""
        possible = [name for name, m in METRICS.items() if self.reference or not m.needs_reference]
        return list(dict.fromkeys(self.metrics)) or possible


def _targets(config: EvaluateConfig, methods: list[str], pictures: list[str]) -> Iterator[Path]:
    """Every file that an evaluation writes, but the pictures that it is known to have made."""
    yield from scores.files(config.out)
    for method in methods:
        made = config.out / "sr" / method / scores.MADE
        yield made
        known = scores.digests(made)
        for path in (made.with_name(f"{name}.png") for name in pictures):
            if not (path.is_file() and known and sha256(path) in known):
                yield path
    if not config.images and not scores.is_old(config.out):
        for folder in ("reference",) if config.protocol == "luma" else ("reference", "lr"):
            yield from (config.out / folder / f"{name}.png" for name in pictures)


def run(config: EvaluateConfig) -> None:
    """Score every method on every picture, print the table of means, and write all to --out.

    Raises UserError at the end if something that was asked for could not be scored.
    """
    named = parse_methods(config.weights, config.outputs)
    inputs = [*config.images, *config.reference, *(m.source for m in named if m.is_folder)]
    check_folder(config.out, inputs)
    names = [file.stem for file in testset.find(config.images or config.reference)]
    check_folder(
        config.out, inputs, _targets(config, [m.name for m in named if not m.is_folder], names)
    )
    methods = locate_weights(named)
    fix = "free some disk space, or choose another --out"
    with ExitStack() as stack:
        with writing(config.out, fix):  # pictures and scores of earlier evaluations are used again
            stack.enter_context(sole_writer(config.out, "being evaluated into"))
        _evaluate(config, methods)


def _evaluate(config: EvaluateConfig, methods: list[Method]) -> None:
    if config.images:
        pictures = testset.from_images(config.images, config.reference, config.scale)
    else:
        pictures = testset.from_references(
            config.reference, config.protocol, config.out, config.scale
        )
    from trainer.evaluate.evaluator import Evaluator  # imports torch; paths are checked by now

    device = pick_device(config.device)
    evaluator = Evaluator(config.out, config.passes, config.tile, device)
    border = config.scale if config.crop_border is None else config.crop_border
    # References that are Y already have no colour to convert.
    colour: Colour = "rgb" if config.protocol == "luma" else config.colour
    metrics = []
    for name in config.metric_names:
        try:
            metrics.append(load_metric(name, device, colour, border))
        except MetricUnavailable as error:
            evaluator.report(error)
    found = evaluator.evaluate(methods, pictures, metrics)
    scores.write(config.out, found)
    print(scores.markdown(found))
    print(f"\nwritten to {config.out}: means.md, and means and scores as .csv and .parquet")
    if problems := evaluator.problems:
        rest = len(problems) - 1
        more = f", and {counted(rest, 'more problem')}" if rest else ""
        raise UserError(f"not everything was scored: {problems[0].problem}{more}", problems[0].fix)


main = Command(
    EvaluateConfig, run, name="lasr evaluate", about=__doc__, weights=True,
    following=lambda config: ["lasr", "sidebyside", config.out],
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
