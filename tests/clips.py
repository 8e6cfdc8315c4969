"""A small CLIP in open_clip's own folder format, with random weights."""

import json
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch


def save_clip(folder: Path, seed: int = 1, resnet: bool = False, **changes: Any) -> dict[str, Any]:
    """Write open_clip_config.json and open_clip_model.safetensors; returns the model's config."""
    vit = {"image_size": 56, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14}
    modified_resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": modified_resnet if resnet else vit,
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    } | changes
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    return config
