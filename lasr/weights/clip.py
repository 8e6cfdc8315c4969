"""Load a CLIP from a folder in open_clip's format, for captions and for the losses."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

from lasr.errors import one_line
from lasr.files import read_text
from lasr.weights.locate import Located, WeightsError, check_expected
from lasr.weights.tensors import read_tensors

# The architecture of OpenAI's ViT-L/14 (patch 14, QuickGELU), small enough for a first look on a
# CPU. Its weights are seeded noise: it shows that everything runs, and its answers mean nothing.
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
    """An open_clip model, its preprocessing and its tokenizer."""

    model: open_clip.CLIP
    preprocess: Preprocess
    tokenize: Callable[[list[str]], torch.Tensor]  # texts -> n x 77 int64
    identity: str


def load_clip(located: Located, device: torch.device) -> Clip:
    """Load a CLIP from a folder in open_clip's format, in evaluation mode and without gradients.

    The folder holds open_clip_config.json and open_clip_model.safetensors or a .bin of plain
    tensors; `located` is the folder or the weights file in it. Weights for GELU and for QuickGELU
    have the same names and shapes, and the wrong activation gives wrong features. Only the config
    tells them apart (`quick_gelu`, GELU if absent), so a weights file without a config is refused,
    and so is a config without QuickGELU for OpenAI's weights by name.

    Raises:
        WeightsError: not such a folder, damaged, towers of other libraries, or another tokenizer
            than OpenAI's.
    """
    model, preprocess = _tiny() if located.path is None else _from_folder(located, located.path)
    words, length = model.token_embedding.num_embeddings, model.context_length
    if (words, length) != (49408, 77):
        raise WeightsError(
            f"{located.path}: reads {length} tokens of {words} kinds, OpenAI's tokenizer makes 77"
            " of 49408",
            "take a CLIP with OpenAI's tokenizer",
        )
    model = model.eval().requires_grad_(False).to(device)
    tokenize = open_clip.get_tokenizer("ViT-L-14")  # the BPE of every OpenAI-style CLIP
    return Clip(model, preprocess, tokenize, located.identity)


def _tiny() -> tuple[open_clip.CLIP, Preprocess]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**_TINY)
    return model, _preprocess(model, {})


def _preprocess(model: open_clip.CLIP, settings: dict[str, Any]) -> Preprocess:
    """The config's settings over OpenAI's, as in open_clip's factory."""
    merged = merge_preprocess_dict(PreprocessCfg(), settings) | {"size": model.visual.image_size}
    model.visual.image_mean, model.visual.image_std = merged["mean"], merged["std"]
    transform: Preprocess = image_transform_v2(PreprocessCfg(**merged), is_train=False)
    return transform


def _from_folder(located: Located, path: Path) -> tuple[open_clip.CLIP, Preprocess]:
    """Without open_clip's factory.

    The factory interpolates positions that do not fit, picks one of several weights files itself,
    and follows a config to the loaders of other libraries.
    """
    folder = path if path.is_dir() else path.parent
    config = folder / "open_clip_config.json"
    if not config.is_file():
        if path.is_file():
            read_tensors(path)  # a damaged file or an archive has an error message of its own
        raise WeightsError(
            f"{path}: no open_clip_config.json beside the weights",
            "a CLIP is a folder in open_clip's format, as"
            " `open_clip.push_to_hf_hub.save_for_hf` writes it",
        )
    try:
        content = json.loads(read_text(config))
        wanted, preprocess = content["model_cfg"], content.get("preprocess_cfg", {})
        vision, text = wanted["vision_cfg"], wanted["text_cfg"]
        foreign = [key for key in _FOREIGN if key in {*wanted, *vision, *text}]
        if foreign:
            raise ValueError(f"it asks for {foreign[0]}, only OpenAI-style models are supported")
        check_expected(located, {**vision, "quick_gelu": wanted.get("quick_gelu", False)})
        with torch.random.fork_rng(devices=[]):
            model = open_clip.CLIP(**wanted)
        transform = _preprocess(model, preprocess)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise WeightsError(
            f"{config}: no config of a plain CLIP: {one_line(error)}", "fetch it again"
        ) from error
    file = path if path.is_file() else _weights_in(folder)
    try:
        model.load_state_dict(read_tensors(file))
    except RuntimeError as error:
        raise WeightsError(
            f"{file}: does not fit {config.name} beside it: {one_line(error)}", "fetch both again"
        ) from error
    return model, transform


# Text or image towers of other libraries, and other kinds of CLIP.
_FOREIGN = ("hf_model_name", "timm_model_name", "multimodal_cfg", "custom_text")
_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip


def _weights_in(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: no weights beside open_clip_config.json", f"add {_FILES[0]}")
