"""Write networks as files of tensors, which `lasr.weights.tensors` reads.

The header of safetensors says where a network comes from, by keys of the Model Metadata Standard
(ModelSpec 1.0.0, Stability AI), which model browsers show, and our own. spandrel, chaiNNer and
OpenModelDB recognise a network by its tensors and read no metadata; traiNNer-redux writes its
network's parameters as JSON, under the key `metadata`. There is no date: equal runs write equal
files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import lasr
from lasr.files import IsOurs, atomic_path
from lasr.marks import KEY
from lasr.ownership import is_ours
from lasr.weights.registry import TABLE
from schemas.manifest import SCALE
from trainer.models.rrdb import RRDB


def write_tensors(
    path: str | Path,
    state: dict[str, Tensor],
    about: dict[str, str] | None = None,
    is_ours: IsOurs | None = is_ours,
) -> None:
    """Write a network's tensors atomically: safetensors, or a pickle if the suffix is `.pth`.

    A `.pth` is `{"params_ema": state}`, which Real-ESRGAN's scripts and chaiNNer load. about:
    metadata for the header of safetensors; a `.pth` has none. is_ours: whether a file at `path` may
    be replaced; None: any.
    """
    # Contiguous: safetensors cannot store weights in channels_last.
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with atomic_path(Path(path), is_ours) as temporary:
        if Path(path).suffix == ".pth":
            torch.save({"params_ema": state, KEY: lasr.__version__}, temporary)
        else:
            metadata = {"format": "pt", KEY: lasr.__version__} | (about or {})
            # Not save_file, which creates a file that only its owner can read.
            temporary.write_bytes(safetensors.torch.save(state, metadata))


def save_network(
    network: nn.Module,
    folder: str | Path,
    name: str = "model",
    is_ours: IsOurs | None = is_ours,
    about: dict[str, str] | None = None,
) -> list[Path]:
    """Write a network as `name.safetensors` and `name.pth`; returns their paths.

    about: metadata for the header of the first (`provenance`).

    Floating-point tensors are written in float32 under the network's own key names: BasicSR's for
    an RRDB, those that spandrel reads for a network that spandrel built.
    """
    state = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in network.state_dict().items()
    }
    paths = [Path(folder) / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
    for path in paths:
        write_tensors(path, state, about, is_ours)
    return paths


def provenance(settings: dict[str, Any], network: nn.Module) -> dict[str, str]:
    """Describe the network of a run.

    settings: the config.json of `lasr train` or `lasr pretrain`.
    """
    weights = settings.get("weights", {})
    data = "manifest" if "manifest_identity" in settings else "images"
    start = str(weights.get("sr_init") or "random")
    models = {name: str(weights[name]) for name in ("clip", "vgg") if weights.get(name)}
    own = {
        "scale": str(SCALE),
        "colour": "RGB",
        "range": "0..1",
        "started_from": start,
        "licence": terms(start),
        f"{data}_identity": str(settings.get(f"{data}_identity", "")),
        "steps": str(settings.get("steps", "")),
    }
    about = f"x{SCALE} super-resolution, trained by LA-SR from {start}"
    if models:
        about += f", judged by {' and '.join(models.values())}"
    return own | models | {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _architecture(network),
        "modelspec.implementation": f"la-sr {lasr.__version__}",
        "modelspec.title": f"LA-SR x{SCALE}",
        "modelspec.description": about,
        "modelspec.license": terms(start),
        "modelspec.tags": f"super-resolution, image-restoration, x{SCALE}",
    }  # fmt: skip


def _architecture(network: nn.Module) -> str:
    """As spandrel calls it."""
    return "ESRGAN" if isinstance(network, RRDB) else type(network).__name__


def terms(identity: str) -> str:
    """The licence of weights by their identity, NAME@HASH."""
    known = TABLE.get(identity.split("@")[0])
    return known.terms if known else "not stated"
