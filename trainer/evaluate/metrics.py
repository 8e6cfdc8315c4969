"""The paper's metrics, through pyiqa (the extra `evaluate`), and their weights.

    python -m trainer.evaluate.metrics list
    python -m trainer.evaluate.metrics fetch [NAME...]

An evaluation never downloads; only `fetch` does. Weights stand in `metrics` in the weights' folder
(data/weights, or LASR_WEIGHTS), laid out as ~/.cache/torch/hub is, and can be carried along.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import math
import os
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import packaging.version
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from lasr.cli import Command, Group
from lasr.device import device_name
from lasr.errors import UserError
from lasr.flags import NoFlags
from lasr.weights.digests import sha256
from lasr.weights.locate import weights_folder
from trainer.evaluate.offline import offline

Colour = Literal["ycbcr", "yiq", "rgb"]


@dataclass(frozen=True)
class Known:
    """A metric of the paper: what pyiqa and the paper's tables call it, what its options are."""

    pyiqa: str
    title: str
    reference: bool
    options: tuple[tuple[str, Any], ...] = ()


# TOPIQ's own file holds its ResNet-50 too; ImageNet's, which it would replace, is not fetched.
_WHOLE = (("backbone_pretrain", False),)
PAPER = {
    "psnr": Known("psnr", "PSNR", True),
    "ssim": Known("ssim", "SSIM", True),
    "lpips": Known("lpips", "LPIPS", True),
    "dists": Known("dists", "DISTS", True),
    "topiq-fr": Known("topiq_fr", "TOPIQ (FR)", True, _WHOLE),
    "brisque": Known("brisque", "BRISQUE", False),
    "clip-iqa": Known("clipiqa", "CLIPIQA", False),
    "topiq": Known("topiq_nr", "TOPIQ (NR)", False, _WHOLE),
    "musiq": Known("musiq", "MUSIQ", False),
    "liqe": Known("liqe", "LIQE", False),
}
_OTHER_INPUTS = ("fid", "fid_dinov2", "inception_score", "clipscore")  # folders, or a caption


class MetricMissing(UserError):
    """A metric that cannot be computed here; says what to do."""


@dataclass(frozen=True)
class Metric:
    """A metric ready to score, and all that tells its scores from another one's."""

    name: str
    title: str
    higher_is_better: bool
    needs_reference: bool
    version: str  # of pyiqa
    weights: str  # file@sha256, ... of every file that was read; "" where there is none
    convention: str  # colour and border, where they matter
    device: str
    model: Any

    @property
    def identity(self) -> str:
        """Equal where scores may be compared: name, version, weights and convention."""
        return "; ".join(
            part
            for part in (self.name, f"pyiqa {self.version}", self.weights, self.convention)
            if part
        )

    def score(self, picture: Tensor, reference: Tensor | None) -> float:
        """Of a picture (3, h, w) in [0, 1]; the reference has the same size.

        Raises UserError: the metric fails on this picture, or its answer is not finite.
        """
        pair = [picture] if reference is None or not self.needs_reference else [picture, reference]
        torch.manual_seed(0)  # some metrics look at random crops
        try:
            with torch.inference_mode():
                answer = self.model(*(each[None].float() for each in pair))
            value = float(answer)
        except Exception as error:  # networks fail in many ways on small or very large pictures
            raise UserError(f"{self.name} failed ({type(error).__name__}: {error})") from error
        if not math.isfinite(value):
            raise UserError(f"{self.name} answered {value}")
        return value


def load_metric(
    name: str, device: torch.device, colour: Colour = "ycbcr", border: int = 0
) -> Metric:
    """A metric by its name in PAPER, or any other by pyiqa's name; no connection is made.

    colour, border: for PSNR and SSIM, see `trainer.evaluate`.
    Raises MetricMissing: its weights are not here, or cannot be loaded.
    Raises UserError: no such metric, or no pyiqa.
    """
    known = _known(name)
    options, convention = dict(known.options), ""
    if known.pyiqa in ("psnr", "ssim"):
        options |= _convention(known.pyiqa, colour, border)
        channel = "RGB" if colour == "rgb" else f"Y of {colour}"
        convention = f"{channel}, border {border}"
    home = _home()
    with offline(home) as watch:
        try:
            model = _create(known.pyiqa, device, options)
        except Exception as error:  # from many libraries; the user needs one line
            if watch.refused:
                raise MetricMissing(
                    f"{name}: its weights are not in {home}; fetch them with"
                    f" `python -m trainer.evaluate.metrics fetch {name}`"
                ) from error
            raise MetricMissing(
                f"{name}: cannot be loaded ({type(error).__name__}: {error}); fetch it again with"
                f" `python -m trainer.evaluate.metrics fetch {name}`, or upgrade pyiqa"
            ) from error
    files = sorted(file for file in watch.files if file.is_file())
    return Metric(
        name,
        known.title,
        higher_is_better=not model.lower_better,
        needs_reference=known.reference,
        version=_version(),
        weights=", ".join(f"{file.name}@{sha256(file)[:12]}" for file in files),
        convention=convention,
        device=device_name(device),
        model=model,
    )


def _convention(name: str, colour: Colour, border: int) -> dict[str, Any]:
    options: dict[str, Any] = {"crop_border": border, "test_y_channel": colour != "rgb"}
    if colour != "rgb":
        options["color_space"] = colour
        if name == "psnr":
            options["data_range"] = 255  # makes pyiqa round Y, as MATLAB's rgb2ycbcr does
    return options


def _known(name: str) -> Known:
    if name in PAPER:
        return PAPER[name]
    configs = _pyiqa().default_model_configs.DEFAULT_CONFIGS
    if name in _OTHER_INPUTS or name not in configs:
        raise UserError(
            f"--metrics {name}: no such metric; the paper's are {', '.join(PAPER)}, and all other"
            " names of pyiqa.list_models() that take pictures one by one work too"
        )
    return Known(name, name, configs[name]["metric_mode"] == "FR")


def _pyiqa() -> Any:
    try:
        _import_clip()
        import pyiqa
    except ImportError as error:
        raise UserError(
            f"pyiqa cannot be imported ({error}); run `pip install '.[evaluate]'`"
        ) from error
    return pyiqa


def _import_clip() -> None:
    """openai-clip, which CLIP-IQA and LIQE import, where setuptools (81 and up) has no
    pkg_resources any more: all it wants of it is the package `packaging`."""
    if "clip" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        return
    stand_in: Any = types.ModuleType("pkg_resources")
    stand_in.packaging = packaging
    sys.modules["pkg_resources"] = stand_in
    try:
        importlib.import_module("clip")
    finally:
        del sys.modules["pkg_resources"]


def _home() -> Path:
    """The folder of metric weights, where torch.hub, pyiqa and its CLIP will look."""
    home = (weights_folder() / "metrics").absolute()
    torch.hub.set_dir(str(home))
    _pyiqa()
    from pyiqa.utils import download_util

    download_util.DEFAULT_CACHE_DIR = str(home / "pyiqa")  # was settled when it was imported
    return home


def _create(name: str, device: torch.device, options: dict[str, Any]) -> Any:
    # pyiqa tells what it loads and from where, and what of it is deprecated.
    with _tensors_only(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return _pyiqa().create_metric(name, device=device, **options)


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """No file can run code: pyiqa's `torch.load(weights_only=False)` is overruled."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _version() -> str:
    return importlib.metadata.version("pyiqa")


class FetchConfig(BaseModel):
    """What `fetch` takes."""

    names: list[str] = Field(
        [], description="as in `list`, or pyiqa's names (default: all of `list`)"
    )


def _list(_: NoFlags) -> None:
    for name, known in PAPER.items():
        try:
            metric = load_metric(name, torch.device("cpu"))
            here = metric.weights or "needs no weights"
        except MetricMissing as error:
            here = "not here" if "are not in" in str(error) else str(error)
        kind = "with reference" if known.reference else "no reference"
        print(f"{name:10}{kind:16}{here}")
    print(f"\nfolder: {_home()} (set LASR_WEIGHTS to change it)")


def _fetch(config: FetchConfig) -> None:
    failed = []
    for name in config.names or list(PAPER):
        known = _known(name)
        home = _home()
        print(f"{name}: into {home}", flush=True)
        try:
            _create(known.pyiqa, torch.device("cpu"), dict(known.options))
        except Exception as error:  # each library raises its own; the user needs one line
            failed.append(f"{name} ({type(error).__name__}: {error})")
    if failed:
        raise UserError(
            f"could not be fetched: {'; '.join(failed)}; check the connection, or copy"
            f" ~/.cache/torch/hub of a machine that has them to {_home()}"
        )


_COMMANDS: list[Command[Any]] = [
    Command(
        NoFlags,
        _list,
        name="lasr metrics list",
        about="Show the paper's metrics, and whose weights are here.",
        weights=True,
    ),
    Command(
        FetchConfig,
        _fetch,
        name="lasr metrics fetch",
        about="Download the weights of metrics.",
        positional="names",
        weights=True,
    ),
]

main = Group("lasr metrics", about=__doc__, sections={"Commands": _COMMANDS})

if __name__ == "__main__":
    sys.exit(main())
