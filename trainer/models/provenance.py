"""Where a trained network comes from, as text for the header of safetensors.

Keys of the Model Metadata Standard (ModelSpec 1.0.0, Stability AI), which model browsers show, and
our own. spandrel, chaiNNer and OpenModelDB recognise a network by its tensors and read no metadata;
traiNNer-redux writes its network's parameters as JSON, under the key `metadata`. There is no date:
equal runs write equal files.
"""

from typing import Any

from torch import nn

import lasr
from lasr.weights.registry import TABLE
from schemas.manifest import SCALE
from trainer.models.rrdb import RRDB


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
