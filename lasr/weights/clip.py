"""The CLIP that both programs use, through open_clip."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import build_model_from_openai_state_dict
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

from lasr.weights.locate import Located, WeightsError, locate
from lasr.weights.tensors import read_tensors
from lasr.weights.torchscript import is_torchscript, read_torchscript
from lasr.weights.variants import check_variant

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


def load_clip(weights: Located | str, device: torch.device) -> Clip:
    """Load a CLIP: located weights, a name of the registry, or a path to its publisher's files.

    - A folder in open_clip's format: open_clip_config.json, and open_clip_model.safetensors or a
      .bin of plain tensors.
    - An archive of OpenAI's, such as ViT-L-14.pt. It is never run (see lasr.weights.torchscript).

    Weights for GELU and for QuickGELU have the same shapes, and the wrong one answers wrongly
    without a word. The config of a folder says which (`quick_gelu`; open_clip takes its absence
    for GELU), and must say QuickGELU where OpenAI's weights are asked for by name; an archive's own
    code says it. A lone weights file says nothing, and is refused. Raises WeightsError.
    """
    located = locate(weights, "clip") if isinstance(weights, str) else weights
    if located.path is None:
        model, preprocess = _tiny()
    elif is_torchscript(located.path):
        model, preprocess = _from_archive(located)
    else:
        model, preprocess = _from_folder(located)
    words, length = model.token_embedding.num_embeddings, model.context_length
    if (words, length) != (49408, 77):
        raise WeightsError(
            f"{located.path}: reads {length} tokens of {words} kinds, OpenAI's tokenizer makes 77"
            " of 49408; take a CLIP with OpenAI's tokenizer"
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
    """As open_clip's factory: the config's settings, OpenAI's where it is silent."""
    told = merge_preprocess_dict(PreprocessCfg(), settings) | {"size": model.visual.image_size}
    model.visual.image_mean, model.visual.image_std = told["mean"], told["std"]
    transform: Preprocess = image_transform_v2(PreprocessCfg(**told), is_train=False)
    return transform


def _from_folder(located: Located) -> tuple[open_clip.CLIP, Preprocess]:
    assert located.path is not None
    folder = located.path if located.path.is_dir() else located.path.parent
    told = folder / "open_clip_config.json"
    if not told.is_file():
        if located.path.is_file():
            read_tensors(located.path)  # says it first where the file is damaged
        raise WeightsError(
            f"{located.path}: no open_clip_config.json beside the weights; a CLIP is a folder in"
            " open_clip's format, as `open_clip.push_to_hf_hub.save_for_hf` writes it, or an"
            " archive of OpenAI's"
        )
    # Not by open_clip's factory: it would stretch positions that do not fit, pick a file itself
    # where there are several, and follow a config to other libraries' loaders.
    try:
        config = json.loads(told.read_text(encoding="utf-8"))
        wanted, preprocess = config["model_cfg"], config.get("preprocess_cfg", {})
        vision, text = wanted["vision_cfg"], wanted["text_cfg"]
        foreign = [key for key in _FOREIGN if key in {*wanted, *vision, *text}]
        if foreign:
            raise ValueError(f"it asks for {foreign[0]}, this takes OpenAI-style models")
        check_variant(located, {**vision, "quick_gelu": wanted.get("quick_gelu", False)})
        with torch.random.fork_rng(devices=[]):
            model = open_clip.CLIP(**wanted)
        transform = _preprocess(model, preprocess)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        raise WeightsError(
            f"{told}: no config of a plain CLIP: {_line(error)}; fetch it again"
        ) from error
    file = located.path if located.path.is_file() else _weights_in(folder)
    try:
        model.load_state_dict(read_tensors(file))
    except RuntimeError as error:
        raise WeightsError(
            f"{file}: does not fit {told.name} beside it: {_line(error)}; fetch both again"
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
    raise WeightsError(f"{folder}: no weights beside open_clip_config.json; put {_FILES[0]} there")


def _from_archive(located: Located) -> tuple[open_clip.CLIP, Preprocess]:
    assert located.path is not None
    archive = read_torchscript(located.path)
    # As upstream's classes become text: QuickGELU is the only sigmoid in a CLIP.
    activations = [name for name in ("gelu", "sigmoid") if f"torch.{name}(" in archive.code]
    if len(activations) != 1:
        raise WeightsError(
            f"{located.path}: its code has neither GELU nor QuickGELU alone; give OpenAI's archive"
        )
    try:
        model = build_model_from_openai_state_dict(
            archive.tensors, quick_gelu=activations == ["sigmoid"], cast_dtype=torch.float32
        ).float()
    except (KeyError, RuntimeError, ValueError, AssertionError) as error:
        raise WeightsError(
            f"{located.path}: is not OpenAI's CLIP: {_line(error)}; give the archive it published"
        ) from error
    return model, _preprocess(model, {})


def _line(error: Exception) -> str:
    """What open_clip or PyTorch says, on one line and not all of it."""
    return " ".join(str(error).split())[:300] or type(error).__name__
