"""Networks by name or path: located and loaded in one call, as the commands do it in two."""

from pathlib import Path

import torch
from torch import nn

from lasr.weights import clip
from lasr.weights.locate import locate
from lasr.weights.tensors import read_tensors
from pipeline.stages import depth
from pipeline.stages.depth import DepthModel
from trainer.models import encoders, load, rrdb, vgg

CPU = torch.device("cpu")


def load_clip(name_or_path: str | Path, device: torch.device = CPU) -> clip.Clip:
    return clip.load_clip(locate(str(name_or_path), "clip"), device)


def load_depth(name_or_path: str | Path, device: torch.device = CPU, seed: int = 0) -> DepthModel:
    return depth.load_depth(locate(str(name_or_path), "depth"), device, seed)


def load_encoders(name_or_path: str | Path, device: torch.device = CPU) -> encoders.Encoders:
    return encoders.load_encoders(locate(str(name_or_path), "clip"), device)


def load_model(name_or_path: str | Path) -> load.SRModel:
    return load.load_model(locate(str(name_or_path), "sr"))


def load_sr(name_or_path: str | Path) -> nn.Module:
    return load.load_sr(locate(str(name_or_path), "sr"))


def load_vgg(name_or_path: str | Path, layers: list[str] | None = None) -> vgg.VGG:
    return vgg.load_vgg(locate(str(name_or_path), "vgg"), layers)


def load_rrdb(path: str | Path) -> rrdb.RRDB:
    return rrdb.rrdb_from(read_tensors(path), path)
