"""Load a CLIP from a folder in open_clip's format, for captions and for the losses."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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


_LONG = 1024  # tokens, more than any caption has
Preprocess = Callable[[Any], torch.Tensor]  # PIL image -> 3 x S x S, resized and normalised
Tokenize = Callable[..., torch.Tensor]  # texts -> n x length int64, padded or cut


@dataclass(frozen=True)
class Clip:
    """An open_clip model, its preprocessing and its tokenizer."""

    model: open_clip.CLIP | open_clip.CustomTextCLIP
    preprocess: Preprocess
    tokenize: Tokenize
    identity: str

    def count_tokens(self, texts: list[str]) -> list[int]:
        """The tokens of each text, with those of start and end, before it is cut."""
        tokens = self.tokenize(texts, context_length=_LONG)
        used = (tokens != tokens[:, -1:]).cumsum(dim=1)  # the last token is padding
        return (used.argmax(dim=1) + 1).tolist()

    @property
    def length(self) -> int:
        """The tokens that it reads of a text."""
        return self.tokenize([""]).shape[1]


def load_clip(located: Located, device: torch.device) -> Clip:
    """Load a CLIP from a folder in open_clip's format, in evaluation mode and without gradients.

    The folder holds open_clip_config.json and open_clip_model.safetensors or a .bin of plain
    tensors; `located` is the folder or the weights file in it. Weights for GELU and for QuickGELU
    have the same names and shapes, and the wrong activation gives wrong features. Only the config
    tells them apart (`quick_gelu`, GELU if absent), so a weights file without a config is refused,
    and so is a config without QuickGELU for OpenAI's weights by name.

    An image tower of timm and a text tower of transformers are built from what is on this machine:
    the folder then also holds the text tower's config.json, below its `hf_model_name`, and its
    tokenizer.

    Raises:
        WeightsError: not such a folder, damaged, or with other towers or another tokenizer.
    """
    if located.parts:
        model, preprocess, tokenize = _from_parts(located)
    elif located.path is None:
        model, preprocess, tokenize = _tiny()
    else:
        model, preprocess, tokenize = _from_folder(located, located.path)
    model = model.eval().requires_grad_(False).to(device)
    return Clip(model, preprocess, tokenize, located.identity)


_Loaded = tuple[open_clip.CLIP | open_clip.CustomTextCLIP, Preprocess, Tokenize]


def _tiny() -> _Loaded:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**_TINY)
    return model, _preprocess(model, {}), _openai_tokenizer(Path(), model)


def _preprocess(
    model: open_clip.CLIP | open_clip.CustomTextCLIP, settings: dict[str, Any]
) -> Preprocess:
    """The config's settings over OpenAI's, as in open_clip's factory."""
    merged = merge_preprocess_dict(PreprocessCfg(), settings) | {"size": model.visual.image_size}
    model.visual.image_mean, model.visual.image_std = merged["mean"], merged["std"]
    transform: Preprocess = image_transform_v2(PreprocessCfg(**merged), is_train=False)
    return transform


def _from_folder(located: Located, path: Path) -> _Loaded:
    """Without open_clip's factory.

    The factory interpolates positions that do not fit, picks one of several weights files itself,
    and lets the loaders of other libraries use the network.
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
        wanted = content["model_cfg"]
        vision, text = wanted["vision_cfg"], wanted["text_cfg"]
        check_expected(located, {**vision, "quick_gelu": wanted.get("quick_gelu", False)})
        name = str(text.get("hf_model_name", ""))
        architecture = folder / name if (folder / name / "config.json").is_file() else folder
        loaded = _build(config, content, architecture, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{config}: no config of a plain CLIP: {one_line(error)}", "fetch it again"
        ) from error
    file = path if path.is_file() else _weights_in(folder)
    _fill(loaded[0], read_tensors(file), file)
    return loaded


def load_towers(parts: dict[str, Path]) -> Clip:
    """`clip-small` out of other packages' files, by their names; its heads are random."""
    from lasr.weights.small import towers

    config, folder = towers.CONFIG, parts["tokenizer.json"].parent
    model, preprocess, tokenize = _build(config, json.loads(read_text(config)), folder, folder)
    model.load_state_dict(towers.tower_tensors(parts), strict=False)
    return Clip(model.eval().requires_grad_(False), preprocess, tokenize, "")


def _from_parts(located: Located) -> _Loaded:
    from lasr.weights.small import towers

    parts = towers.by_name(located.parts)
    clip, head = load_towers(parts), parts["head.safetensors"]
    _fill(clip.model, towers.assembled(parts), head)
    return clip.model, clip.preprocess, clip.tokenize


def _build(config: Path, content: dict[str, Any], architecture: Path, tokens: Path) -> _Loaded:
    """A model with random weights as `content` says, its preprocessing and its tokenizer.

    architecture: the folder of the text tower's config.json, tokens: of its tokenizer; they count
    if the text tower is one of transformers. Nothing is downloaded, and no code of a folder runs.
    Raises WeightsError, ValueError, KeyError, TypeError, OSError.
    """
    wanted = dict(content["model_cfg"])
    vision, text = dict(wanted["vision_cfg"]), dict(wanted["text_cfg"])
    if foreign := [key for key in _FOREIGN if key in {*wanted, *vision, *text}]:
        raise ValueError(f"it asks for {foreign[0]}, only plain CLIPs are supported")
    if timm_name := vision.get("timm_model_name"):
        import timm

        if not timm.is_model(timm_name):  # with a prefix a name is one of a hub
            raise ValueError(f"timm has no {timm_name}")
        vision["timm_model_pretrained"] = False
    is_hf = "hf_model_name" in text
    if is_hf:
        _check_architecture(architecture / "config.json")
        text |= {"hf_model_name": str(architecture), "hf_model_pretrained": False}
    elif wanted.get("custom_text") or "hf_tokenizer_name" in text:
        raise ValueError("it asks for a text tower or a tokenizer of its own")
    wanted.pop("custom_text", None)
    kind = open_clip.CustomTextCLIP if is_hf else open_clip.CLIP
    try:
        with torch.random.fork_rng(devices=[]):
            model = kind(**wanted | {"vision_cfg": vision, "text_cfg": text})
        transform = _preprocess(model, content.get("preprocess_cfg", {}))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(one_line(error)) from error
    if not is_hf:
        return model, transform, _openai_tokenizer(config, model)
    return model, transform, _own_tokenizer(tokens, text)


def _check_architecture(config: Path) -> None:
    """Raise ValueError unless this is a config of transformers' own, which runs no other code."""
    from open_clip.hf_configs import arch_dict

    content = json.loads(read_text(config))
    if "auto_map" in content or content.get("model_type") not in arch_dict:
        raise ValueError(f"its text tower ({content.get('model_type')}) is none of open_clip's")


def _own_tokenizer(folder: Path, text: dict[str, Any]) -> Tokenize:
    """The tokenizer in a folder, as open_clip's `get_tokenizer` makes it."""
    from open_clip.tokenizer import HFTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer.json in {folder}")
    tokenizer: Tokenize = HFTokenizer(
        str(folder),
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        local_files_only=True,
        trust_remote_code=False,
        **text.get("tokenizer_kwargs") or {},
    )
    return tokenizer


def _openai_tokenizer(config: Path, model: open_clip.CLIP) -> Tokenize:
    """The byte pairs of every OpenAI-style CLIP. Raises WeightsError: the model takes others."""
    words, length = model.token_embedding.num_embeddings, model.context_length
    if (words, length) != (49408, 77):
        raise WeightsError(
            f"{config}: reads {length} tokens of {words} kinds, OpenAI's tokenizer makes 77 of"
            " 49408",
            "take a CLIP with OpenAI's tokenizer, or with the one that its folder holds",
        )
    return _byte_pairs()


@cache
def _byte_pairs() -> Tokenize:
    tokenizer: Tokenize = open_clip.get_tokenizer("ViT-L-14")  # reads its table for 0.2 s
    return tokenizer


def _fill(model: torch.nn.Module, tensors: dict[str, torch.Tensor], file: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(
            f"{file}: does not fit open_clip_config.json beside it: {one_line(error)}",
            "fetch both again",
        ) from error


_FOREIGN = ("multimodal_cfg",)  # other kinds of CLIP
_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip


def _weights_in(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: no weights beside open_clip_config.json", f"add {_FILES[0]}")
