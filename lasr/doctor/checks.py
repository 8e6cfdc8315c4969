"""The checks of `lasr doctor`. Each returns what it found, or yields results, or raises.

A UserError carries its own fix; for other exceptions the list of checks in __main__ has one.
"""

import contextlib
import importlib
import importlib.metadata
import os
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from lasr.errors import UserError
from lasr.terminal.summary import counted
from lasr.weights.locate import found, locate_all, weights_folder, with_needs
from lasr.weights.registry import PROFILES, TABLE, Kind, Profile, Weights

NAME = "la-sr"
TRAINED_ON = ("image_id", "role", "size", "caption", "image")  # columns of a manifest
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"  # in a checkout; a wheel has none
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python")
# In megabytes:
PER_PHOTOGRAPH = 1.5  # 16 patches, 0.4 MB, in a part and in the manifest; the rest is caches
# SR network and CLIP with Adam's two averages: three times 4 bytes for each of 444 million
# parameters. While a checkpoint is written there are three.
TRAINING = 3 * 5_400
TRAINING_SMALL = {
    "offline": 3 * 400,
    "test": 100,
}  # by profile: 30 and 3 million weights


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
        yield Result(
            "warning",
            "package",
            f"{' and '.join(clash)} overwrite each other's files",
            f"run `pip uninstall {' '.join(clash)}`, then `pip install --force-reinstall"
            " opencv-python-headless`",
        )


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


def loads(*modules: str) -> str:
    """Import libraries: a build for another version of its neighbour fails then."""
    found = [f"{name} {importlib.import_module(name).__version__}" for name in modules]
    return ", ".join(found)


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


def weights(profile: Profile, kinds: tuple[Kind, ...]) -> str:
    """Find a profile's weights and verify their digests. Raises WeightsError."""
    located = locate_all(*((entry.name, entry.kind) for entry in _needed(profile, kinds)))
    return f"{', '.join(each.identity for each in located)} in {weights_folder()}"


def _needed(profile: Profile, kinds: tuple[Kind, ...]) -> list[Weights]:
    return with_needs([TABLE[PROFILES[profile][kind]] for kind in kinds], built_in=True)


def disk(data: Path, profile: Profile, kinds: tuple[Kind, ...], photographs: int) -> str:
    """Compare the free space at the data folder with what will be written to that disk."""
    folder, build, train, fetch = _nearest(data), 0.0, 0, 0
    if "depth" in kinds:
        build = PER_PHOTOGRAPH * photographs
    if "sr" in kinds:
        train = TRAINING_SMALL.get(profile, TRAINING)
    if _nearest(weights_folder()).stat().st_dev == folder.stat().st_dev:
        missing = [e for e in _needed(profile, kinds) if not (e.built_in or e.packaged or found(e))]
        fetch = sum(entry.megabytes for entry in missing)
    free, need = shutil.disk_usage(folder).free / 1e6, build + train + fetch
    seen = (
        f"{free / 1e3:.1f} GB free at {folder}, {need / 1e3:.1f} GB needed"
        f" ({counted(photographs, 'photograph')} {build / 1e3:.1f}, training {train / 1e3:.1f},"
        f" weights to fetch {fetch / 1e3:.1f})"
    )
    if free < need:
        raise UserError(seen, "free some space, or use --data on another disk")
    return seen


def manifest(where: Path | str) -> str:
    """Open a manifest as `lasr train` does; of one in storage, time a request. Raises UserError."""
    from lasr.storage.config import StorageConfig
    from lasr.storage.manifest import open_manifest
    from lasr.storage.remote import StoredFile
    from schemas.parts import size_of

    parts = open_manifest(where, TRAINED_ON, StorageConfig(storage_timeout=20)).parts
    seen = f"{where}: {counted(len(parts), 'part')}, {sum(map(size_of, parts)) / 1e9:.2f} GB"
    file = parts[0]
    if not isinstance(file, StoredFile):
        return seen
    began = time.perf_counter()
    file.read(0, min(file.size, 65_536))
    cache = file.access.cache.folder
    return (
        f"{seen}; a request takes {1000 * (time.perf_counter() - began):.0f} ms; cache {cache},"
        f" {shutil.disk_usage(cache).free / 1e9:.1f} GB free"
    )


def writable(folder: Path) -> str:
    """Write a temporary file into a folder, or its nearest parent. Raises UserError."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):  # fails where this is no folder
            return f"{folder.absolute()} can be written"
    except OSError as error:
        problem = f"{folder.absolute()} cannot be written ({error.strerror})"
        raise UserError(problem, "change its permissions, or use another folder") from error


def _nearest(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    for place in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.lstat()  # raises OSError for a name that no folder can have
            return place
    return Path("/")
