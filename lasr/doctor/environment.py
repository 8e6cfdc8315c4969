"""Checks of the installation. Each returns what it found, or yields results, or raises.

A UserError carries its own fix; for other exceptions the table of checks in __main__ has one.
"""

import importlib.metadata
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

NAME = "la-sr"
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"  # in a checkout; a wheel has none
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python")
REINSTALL_OPENCV = "run `pip install --force-reinstall opencv-python-headless`"


@dataclass(frozen=True)
class Result:
    """The result of one check.

    level: "warning" if it works, but not as well as it could; "wrong" if a program that was asked
    about will fail. found: what the check saw. fix: what to do, unless the level is "ok".
    """

    level: Literal["ok", "warning", "wrong"]
    about: str
    found: str
    fix: str = ""


def version(package: str) -> str:
    """The version of an installed package; "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def packages(extras: Sequence[str]) -> Iterator[Result]:
    """Compare installed versions with the requirements of the base and of some extras."""
    project = "." if PYPROJECT.is_file() else NAME
    fix = f"run `pip install --upgrade '{project}[{','.join(extras)}]'`"
    requirements, faults = _requirements(extras), []
    for requirement in requirements:
        installed = version(requirement.name)
        if not installed:
            faults.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            faults.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    yield from (Result("wrong", "package", fault, fix) for fault in faults)
    if not faults:
        yield Result("ok", "packages", f"{len(requirements)} as needed by {', '.join(extras)}")
    clash = [name for name in OPENCV if version(name)]
    if len(clash) > 1:
        found = f"{' and '.join(clash)} overwrite each other's files"
        fix = f"run `pip uninstall {' '.join(clash)}`, then {REINSTALL_OPENCV}"
        yield Result("warning", "package", found, fix)


def _requirements(extras: Sequence[str]) -> list[Requirement]:
    """From pyproject.toml in a checkout, where metadata may be outdated, else from the metadata."""
    if PYPROJECT.is_file():
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        optional = project["optional-dependencies"]
        lines = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    else:
        lines = importlib.metadata.requires(NAME) or []
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [
        r
        for r in map(Requirement, lines)
        if r.name != NAME and (not r.marker or any(map(r.marker.evaluate, environments)))
    ]


def pytorch() -> str:
    """Import PyTorch."""
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} CPU threads"


def gpu() -> Iterator[Result]:
    """Run a kernel on each GPU that PyTorch sees, or tell why it sees none."""
    import torch

    for index in range(torch.cuda.device_count()):
        torch.ones(8, device=f"cuda:{index}").sum().item()  # fails if the build lacks this GPU
        free, total = (bytes_ / 1e9 for bytes_ in torch.cuda.mem_get_info(index))
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        name = f"{torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}, {half}"
        yield Result("ok", f"GPU {index}", f"{name}, {free:.1f} of {total:.1f} GB free")
    if torch.cuda.device_count():
        return
    if not _has_driver():
        fix = "use --profile offline for a first look, or a machine with an NVIDIA GPU"
        yield Result("warning", "GPU", "none: full-size networks are slow on a CPU", fix)
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        fix = "run `unset CUDA_VISIBLE_DEVICES`"
        yield Result("warning", "GPU", "hidden by CUDA_VISIBLE_DEVICES", fix)
    else:
        raise RuntimeError(f"PyTorch (CUDA {torch.version.cuda}) cannot use the NVIDIA driver")


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or bool(shutil.which("nvidia-smi"))


def torchvision() -> str:
    """Run an operator of torchvision, which fails if it was built for another PyTorch."""
    import torch
    import torchvision  # type: ignore[import-untyped]

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    selected = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if selected != [0, 2]:
        raise RuntimeError(f"nms returns {selected}, not [0, 2]")
    return f"{torchvision.__version__}, its operators run"


def opencv() -> str:
    """Write and read a PNG."""
    import cv2
    import numpy as np

    picture = np.arange(300, dtype=np.uint16).reshape(10, 10, 3)
    decoded = cv2.imdecode(cv2.imencode(".png", picture)[1], cv2.IMREAD_UNCHANGED)
    if not np.array_equal(np.asarray(decoded), picture):
        raise RuntimeError("a PNG changed when it was written and read")
    return f"{cv2.__version__}, reads and writes PNG"


def duckdb() -> str:
    """Read with DuckDB what pyarrow writes."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"words": [["sky", "sea"]]}), path := f"{folder}/a.parquet")
        rows = duckdb.execute("SELECT unnest(words) FROM read_parquet(?)", [path]).fetchall()
    if rows != [("sky",), ("sea",)]:
        raise RuntimeError(f"it reads {rows}")
    return f"{duckdb.__version__}, reads what pyarrow {pa.__version__} writes"
