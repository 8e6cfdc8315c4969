"""Create pyiqa's metrics from weights on this machine, without network access."""

import contextlib
import importlib.metadata
import importlib.util
import io
import lzma
import os
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import packaging.version

from lasr.errors import UserError, one_line, require
from lasr.weights.locate import weights_folder

if TYPE_CHECKING:
    import torch

_NOT_PER_PICTURE = ("fid", "fid_dinov2", "inception_score", "clipscore")  # folders, or a caption
_CONNECTING = frozenset(["urllib.Request", "socket.getaddrinfo", "socket.connect"])


class MetricUnavailable(UserError):
    """A metric that cannot be computed on this machine."""


class MetricWeightsMissing(MetricUnavailable):
    """A metric whose weights are not on this machine."""


class ConnectionRefused(Exception):
    """Raised in code that tries to open a connection inside `offline`."""


@dataclass
class Watch:
    """What happened inside `offline`."""

    folder: Path
    others: set[int | None]  # threads that ran before
    files: list[Path] = field(default_factory=list)  # opened below `folder`, in order
    refused: str = ""  # address of the first connection that was refused


def import_pyiqa() -> Any:
    """Import pyiqa. Raises UserError if it is not installed."""
    _import_clip()
    return require("pyiqa", "evaluate")


def version() -> str:
    """The version of pyiqa."""
    return importlib.metadata.version("pyiqa")


def is_known(name: str) -> bool:
    """Whether pyiqa has a metric of this name that takes pictures one by one."""
    configs = import_pyiqa().default_model_configs.DEFAULT_CONFIGS
    return name in configs and name not in _NOT_PER_PICTURE


def needs_reference(name: str) -> bool:
    """Whether pyiqa's metric compares with a reference."""
    config = import_pyiqa().default_model_configs.DEFAULT_CONFIGS[name]
    return bool(config["metric_mode"] == "FR")


def use_folder() -> Path:
    """Make torch.hub, pyiqa and its CLIP look for weights in `metrics` of the weights folder.

    The layout is that of ~/.cache/torch/hub.
    """
    import torch

    folder = (weights_folder() / "metrics").absolute()
    torch.hub.set_dir(str(folder))
    import_pyiqa()
    download_util = require("pyiqa.utils.download_util", "evaluate")
    download_util.DEFAULT_CACHE_DIR = str(folder / "pyiqa")  # pyiqa sets it once, on import
    return folder


def _niqe(path: Path) -> io.BytesIO:
    """NIQE's pristine model as the MATLAB file that pyiqa reads."""
    import numpy as np
    from scipy.io import savemat

    content = io.BytesIO()
    with np.load(path, allow_pickle=False) as model:
        names = {"mu_prisparam": "mu_pris_param", "cov_prisparam": "cov_pris_param"}
        savemat(content, {theirs: model[ours] for theirs, ours in names.items()})
    content.seek(0)
    return content


def _brisque(path: Path) -> io.BytesIO:
    """BRISQUE's regression, in libsvm's text format, as the pair of tensors that pyiqa reads."""
    import torch

    _, _, lines = lzma.decompress(path.read_bytes()).decode("ascii").partition("\nSV\n")
    rows = [line.split() for line in lines.splitlines()]
    coefficients = torch.tensor([float(row[0]) for row in rows], dtype=torch.float64)
    vectors = torch.zeros(len(rows), 36, dtype=torch.float64)  # features that are 0 are left out
    for vector, row in zip(vectors, rows, strict=True):
        for number, value in (entry.split(":") for entry in row[1:]):
            vector[int(number) - 1] = float(value)
    content = io.BytesIO()
    torch.save((coefficients, vectors), content)
    content.seek(0)
    return content


_PARAMETERS = Path(__file__).with_name("parameters")  # its README names sources and licences
# Metrics by pyiqa's name whose parameters are part of this package.
INCLUDED: dict[str, tuple[Path, Callable[[Path], io.BytesIO]]] = {
    "niqe": (_PARAMETERS / "niqe_pris_params.npz", _niqe),
    "brisque": (_PARAMETERS / "brisque_allmodel.xz", _brisque),
}


def load(
    name: str, label: str, device: "torch.device", options: Mapping[str, Any]
) -> tuple[Any, list[Path]]:
    """Create a pyiqa metric without network access.

    label: what the user calls the metric. Returns the metric and the weights files that it read.
    Raises MetricWeightsMissing: it tried to download. Raises MetricUnavailable: any other failure.
    """
    folder = use_folder()
    included = [INCLUDED[name][0]] if name in INCLUDED else []
    fetch = f"`lasr metrics fetch {label}`"
    with offline(folder) as watch:
        try:
            metric = create(name, device, options)
        except Exception as error:  # each library raises its own
            if watch.refused:
                raise MetricWeightsMissing(
                    f"{label}: its weights are not in {folder}", f"run {fetch}"
                ) from error
            raise MetricUnavailable(
                f"{label}: cannot be loaded ({type(error).__name__}: {one_line(error)})",
                f"run {fetch} again, or upgrade pyiqa",
            ) from error
    return metric, sorted([*included, *(file for file in watch.files if file.is_file())])


def create(name: str, device: "torch.device", options: Mapping[str, Any]) -> Any:
    """Create a pyiqa metric. Outside `offline`, pyiqa downloads weights that are missing.

    Raises whatever pyiqa and the libraries below it raise.
    """
    pyiqa = import_pyiqa()
    if name in INCLUDED:
        path, read = INCLUDED[name]
        options = {"pretrained_model_path": read(path), **options}
    # pyiqa prints what it loads and warns of deprecated code.
    with _tensors_only(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return pyiqa.create_metric(name, device=device, **options)


_watch: Watch | None = None
_hooked = False


@contextlib.contextmanager
def offline(folder: Path) -> Iterator[Watch]:
    """Refuse new connections of this process, and record the files opened below `folder`.

    pyiqa's metrics find their weights through its own downloader, torch.hub, urllib and the
    Hugging Face hub, and take no local path in common. Python's audit events cover them all, and
    tell which files a metric reads. Files opened by native code are not recorded. Threads that run
    already load no metric, and are left alone.
    """
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # cannot be removed; does nothing outside this context
        _hooked = True
    threads = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    _watch = Watch(folder.resolve(), threads)
    try:
        yield _watch
    finally:
        _watch = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    watch = _watch
    if watch is None or threading.get_ident() in watch.others:
        return
    if event in _CONNECTING:
        watch.refused = watch.refused or str(arguments[0 if event != "socket.connect" else 1])
        raise ConnectionRefused(watch.refused)
    if event == "open" and isinstance(arguments[0], str | Path):
        path = Path(arguments[0]).absolute()
        if path.is_relative_to(watch.folder) and path not in watch.files:
            watch.files.append(path)


def _import_clip() -> None:
    """Import openai-clip, which CLIP-IQA and LIQE need, without pkg_resources.

    setuptools 81 removed pkg_resources. openai-clip uses only its attribute `packaging`.
    """
    if "clip" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        return
    substitute: Any = types.ModuleType("pkg_resources")
    substitute.packaging = packaging
    sys.modules["pkg_resources"] = substitute
    try:
        require("clip", "evaluate")
    finally:
        del sys.modules["pkg_resources"]


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Overrule pyiqa's `torch.load(weights_only=False)`, so that no weights file can run code."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
