"""The CLIP that both programs use, through open_clip."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch

from schemas.weights import Located, WeightsError, locate

# A ViT of the same architecture as OpenAI's ViT-L/14 (patch 14, QuickGELU), small enough for a
# first look on a CPU. Its weights are seeded noise: it shows that things run, and knows nothing.
_TINY: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 224,
        "layers": 3,
        "width": 96,
        "head_width": 32,
        "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}


Preprocess = Callable[[Any], torch.Tensor]  # PIL image -> 3 x S x S, resized and normalised


@dataclass(frozen=True)
class Clip:
    """An open_clip model with what belongs to it."""

    model: open_clip.CLIP
    preprocess: Preprocess
    tokenize: Callable[[list[str]], torch.Tensor]  # texts -> n x 77 int64
    identity: str


def load_clip(name_or_path: str, device: torch.device) -> Clip:
    """Load a CLIP by name (see schemas.weights), or from a folder in open_clip's format.

    Such a folder holds open_clip_config.json and open_clip_model.safetensors (or a .bin that
    `torch.load(weights_only=True)` accepts). A lone weights file is refused: it does not say
    whether it needs GELU or QuickGELU, and the wrong one loads without a word and answers wrongly.
    Raises WeightsError.
    """
    located = locate(name_or_path, "clip")
    model, preprocess = _tiny() if located.path is None else _from_folder(located)
    model = model.eval().requires_grad_(False).to(device)
    tokenize = open_clip.get_tokenizer("ViT-L-14")  # the BPE of every OpenAI-style CLIP
    return Clip(model, preprocess, tokenize, located.identity)


def _tiny() -> tuple[open_clip.CLIP, Preprocess]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**_TINY)
    side = _TINY["vision_cfg"]["image_size"]
    return model, open_clip.image_transform(side, is_train=False, interpolation="bicubic")


def _from_folder(located: Located) -> tuple[open_clip.CLIP, Preprocess]:
    assert located.path is not None
    folder = located.path if located.path.is_dir() else located.path.parent
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise WeightsError(
            f"{located.path}: no open_clip_config.json beside the weights; a CLIP is a folder in"
            " open_clip's format, as `open_clip.push_to_hf_hub.save_for_hf` writes it"
        )
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            f"local-dir:{folder}", require_pretrained=True
        )
    except Exception as error:  # open_clip raises many kinds; the user needs one line
        raise WeightsError(f"{folder}: open_clip cannot load this CLIP ({error})") from error
    if not isinstance(model, open_clip.CLIP):
        raise WeightsError(
            f"{folder}: a {type(model).__name__}, not a plain CLIP; take an OpenAI-style model"
        )
    return model, preprocess
