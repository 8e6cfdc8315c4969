"""List the metrics of `lasr evaluate`, and fetch their weights.

    lasr metrics list
    lasr metrics fetch [NAME...]

Most metrics come from pyiqa (the extra `evaluate`). PSNR, SSIM, NIQE, BRISQUE and PIQE need no
weights beside it. An evaluation never downloads; `fetch` does. It writes to the folder `metrics` in
the weights folder (data/weights, or LASR_WEIGHTS), in the layout of ~/.cache/torch/hub. The folder
can be copied to another machine.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from lasr.cli import Command, Group
from lasr.errors import UserError, one_line
from lasr.flags import NoFlags
from lasr.weights.digests import sha256
from trainer.evaluate import pyiqa_backend
from trainer.evaluate.pyiqa_backend import MetricUnavailable, MetricWeightsMissing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Colour = Literal["ycbcr", "yiq", "rgb"]
Compute = Callable[..., "Tensor | float"]  # (sr) or (sr, reference) to a score


@dataclass(frozen=True)
class PyiqaMetric:
    """A metric that pyiqa computes, by pyiqa's name."""

    pyiqa: str
    title: str  # in tables
    needs_reference: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    least: int = 1  # smallest side of a picture, pixels


@dataclass(frozen=True)
class FunctionMetric:
    """A metric that a plain function computes.

    compute: takes the SR picture, and the reference if needs_reference; returns the score. Both
    pictures are (3, h, w) float32 in [0, 1], RGB, on the CPU, of one size.
    version: increase it when the function's answers change, since scores are cached by it.
    """

    compute: Compute
    title: str  # in tables
    needs_reference: bool
    higher_is_better: bool
    version: int = 1


# The file of TOPIQ includes its ResNet-50, so the one of ImageNet is not needed.
_TOPIQ = {"backbone_pretrain": False}
# To add a metric, add an entry. The paper's metrics come first, in the order of its tables.
METRICS: dict[str, PyiqaMetric | FunctionMetric] = {
    "psnr": PyiqaMetric("psnr", "PSNR", needs_reference=True),
    "ssim": PyiqaMetric("ssim", "SSIM", needs_reference=True),
    "lpips": PyiqaMetric("lpips", "LPIPS", needs_reference=True),
    "dists": PyiqaMetric("dists", "DISTS", needs_reference=True),
    "topiq-fr": PyiqaMetric("topiq_fr", "TOPIQ (FR)", needs_reference=True, options=_TOPIQ),
    "brisque": PyiqaMetric("brisque", "BRISQUE", needs_reference=False),
    "clip-iqa": PyiqaMetric("clipiqa", "CLIPIQA", needs_reference=False),
    "topiq": PyiqaMetric("topiq_nr", "TOPIQ (NR)", needs_reference=False, options=_TOPIQ),
    "musiq": PyiqaMetric("musiq", "MUSIQ", needs_reference=False),
    "liqe": PyiqaMetric("liqe", "LIQE", needs_reference=False),
    # Not in the paper. They and BRISQUE need no download.
    "niqe": PyiqaMetric("niqe", "NIQE", needs_reference=False, least=96),
    "piqe": PyiqaMetric("piqe", "PIQE", needs_reference=False),
}


@dataclass(frozen=True)
class Metric:
    """A metric ready to score, with everything that its scores depend on."""

    name: str
    title: str
    higher_is_better: bool
    needs_reference: bool
    version: str  # of pyiqa; "" if it does not compute the metric
    weights: str  # file@sha256, ... of every weights file that was read; "" if none
    convention: str  # colour and border, or a function's version; "" if neither applies
    device: str
    compute: Compute

    @property
    def identity(self) -> str:
        """Name, version, weights and convention. Scores of equal identities are comparable."""
        version = self.version and f"pyiqa {self.version}"
        return "; ".join(filter(None, (self.name, version, self.weights, self.convention)))

    def score(self, picture: "Tensor", reference: "Tensor | None") -> float:
        """Score a picture, (3, h, w) in [0, 1]. The reference has the same size.

        Raises UserError: the metric fails on this picture, or its score is not finite.
        """
        import torch

        torch.manual_seed(0)  # some metrics look at random crops
        pair = [picture] if reference is None or not self.needs_reference else [picture, reference]
        try:
            with torch.inference_mode():
                score = float(self.compute(*(each.float() for each in pair)))
        except Exception as error:  # networks fail in many ways on small or very large pictures
            raise UserError(
                f"{self.name} failed ({type(error).__name__}: {one_line(error)})"
            ) from error
        if not math.isfinite(score):
            raise UserError(f"{self.name} returned {score}")
        return score


def load_metric(
    name: str, device: "torch.device", colour: Colour = "ycbcr", border: int = 0
) -> Metric:
    """Load a metric of METRICS, or any other of pyiqa by its name. No connection is made.

    colour, border: for PSNR and SSIM, see `EvaluateConfig`.
    Raises MetricUnavailable: the weights are missing, or cannot be loaded.
    Raises UserError: unknown name, or pyiqa is not installed.
    """
    entry = _entry(name)
    if isinstance(entry, PyiqaMetric):
        return _load_pyiqa(name, entry, device, colour, border)
    return Metric(
        name,
        entry.title,
        entry.higher_is_better,
        entry.needs_reference,
        version="",
        weights="",
        convention=f"version {entry.version}",
        device="CPU",
        compute=entry.compute,
    )


def _load_pyiqa(
    name: str, entry: PyiqaMetric, device: "torch.device", colour: Colour, border: int
) -> Metric:
    from lasr.device import device_name

    options, convention = dict(entry.options), ""
    if entry.pyiqa in ("psnr", "ssim"):
        options |= _convention(entry.pyiqa, colour, border)
        channel = "RGB" if colour == "rgb" else f"Y of {colour}"
        convention = f"{channel}, border {border}"
    model, files = pyiqa_backend.load(entry.pyiqa, name, device, options)

    def compute(*pictures: "Tensor") -> "Tensor":
        height, width = pictures[0].shape[-2:]
        if min(height, width) < entry.least:
            raise ValueError(f"{width}x{height} pixels, at least {entry.least}x{entry.least}")
        score: Tensor = model(*(each[None] for each in pictures))
        return score

    return Metric(
        name,
        entry.title,
        higher_is_better=not model.lower_better,
        needs_reference=entry.needs_reference,
        version=pyiqa_backend.version(),
        weights=", ".join(f"{file.name}@{sha256(file)[:12]}" for file in files),
        convention=convention,
        device=device_name(device),
        compute=compute,
    )


def _convention(name: str, colour: Colour, border: int) -> dict[str, Any]:
    options: dict[str, Any] = {"crop_border": border, "test_y_channel": colour != "rgb"}
    if colour != "rgb":
        options["color_space"] = colour
        if name == "psnr":
            options["data_range"] = 255  # makes pyiqa round Y, as MATLAB's rgb2ycbcr does
    return options


def _entry(name: str) -> PyiqaMetric | FunctionMetric:
    if name in METRICS:
        return METRICS[name]
    if not pyiqa_backend.is_known(name):
        raise UserError(
            f"--metrics {name}: no such metric",
            f"choose among {', '.join(METRICS)}, or a name of pyiqa.list_models() that takes"
            " pictures one by one",
        )
    return PyiqaMetric(name, name, pyiqa_backend.needs_reference(name))


class FetchConfig(BaseModel):
    """The flags of `lasr metrics fetch`."""

    names: list[str] = Field(
        [], description="names as `list` shows them, or pyiqa's (default: all of `list`)"
    )


def _list(_: NoFlags) -> None:
    import torch

    for name, entry in METRICS.items():
        try:
            status = load_metric(name, torch.device("cpu")).weights or "needs no weights"
        except MetricWeightsMissing:
            status = "weights missing"
        except MetricUnavailable as error:
            status = str(error)
        kind = "with reference" if entry.needs_reference else "no reference"
        print(f"{name:10}{kind:16}{status}")
    print(f"\nfolder: {pyiqa_backend.use_folder()} (set LASR_WEIGHTS to change it)")


def _fetch(config: FetchConfig) -> None:
    import torch

    failed = []
    for name in config.names or METRICS:
        entry = _entry(name)
        if isinstance(entry, FunctionMetric) or entry.pyiqa in pyiqa_backend.INCLUDED:
            print(f"{name}: needs no download")
            continue
        print(f"{name}: to {pyiqa_backend.use_folder()}", flush=True)
        try:
            pyiqa_backend.create(entry.pyiqa, torch.device("cpu"), entry.options)
        except Exception as error:  # each library raises its own
            failed.append(f"{name} ({type(error).__name__}: {one_line(error)})")
    if failed:
        raise UserError(
            f"could not fetch {', '.join(failed)}",
            "check the connection, or copy ~/.cache/torch/hub of a machine that has the weights to"
            f" {pyiqa_backend.use_folder()}",
        )


_COMMANDS: list[Command[Any]] = [
    Command(
        NoFlags,
        _list,
        "lasr metrics list",
        "Show metrics and their weights.",
        weights=True,
        following=lambda config: ["lasr", "metrics", "fetch"],
    ),
    Command(
        FetchConfig,
        _fetch,
        "lasr metrics fetch",
        "Download weights.",
        "names",
        weights=True,
        following=lambda config: ["lasr", "metrics", "list"],
    ),
]

main = Group("lasr metrics", about=__doc__, sections={"Commands": _COMMANDS})

if __name__ == "__main__":
    sys.exit(main())
