"""Small networks of the upstream classes, with random weights, saved in the upstream formats."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
import torchvision

from lasr.weights.registry import TABLE, File
from tests.support.ldm_unet import LdmUNet


def any_content(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let small networks stand in for the published ones, whose digests are known."""
    for name in names:
        files = tuple(File(file.name) for file in TABLE[name].files)
        monkeypatch.setitem(TABLE, name, replace(TABLE[name], files=files))


def expect(monkeypatch: pytest.MonkeyPatch, name: str, **expected: object) -> None:
    """Change what the table expects of a network; nothing: any network is taken."""
    monkeypatch.setitem(TABLE, name, replace(TABLE[name], expected=expected))


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


def save_depth_anything(folder: Path, **changes: Any) -> None:
    """Depth Anything V2 as transformers saves it: model and image processor.

    changes: of the ViT's configuration.
    """
    from transformers import (  # like diffusers below, seconds that most tests do not need
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        patch_size=14, image_size=70, out_features=stages, reshape_hidden_states=False,
        apply_layernorm=True,
        **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2} | changes,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=backbone.hidden_size, patch_size=14,
        neck_hidden_sizes=[8, 16, 32, 32], fusion_hidden_size=16, head_hidden_size=8,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 70, "width": 70}, keep_aspect_ratio=True, ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3,
    ).save_pretrained(folder)  # fmt: skip


# The published checkpoint's, and smaller: model_channels 320, context_dim 1024 there.
HPARAMS = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 24,
    "legacy": False,
}
SMALL: dict[str, Any] = {**HPARAMS, "num_res_blocks": 1, "channel_mult": [1, 2]}


def randomised(network: Any, seed: int) -> Any:
    """Nothing left at 0 or 1, where two networks may agree by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan = math.prod(parameter.shape[1:])
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(fan))
            else:
                parameter.add_(0.1 * noise)
    return network.eval()


def save_depthfm(path: Path, hparams: dict[str, Any], **changes: Any) -> LdmUNet:
    """The layout of depthfm-v1.ckpt; returns the UNet in it."""
    unet = randomised(LdmUNet(**hparams), seed=1)
    text = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(2))
    content = {
        "noising_step": 400,
        "ldm_hparams": hparams,
        "empty_text_embedding": text.numpy(),
        "state_dict": unet.state_dict(),
    }
    torch.save({**content, **changes}, path)
    return unet


def save_vae(folder: Path) -> None:
    """Stable Diffusion's autoencoder, with its four levels for its factor of 8."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    randomised(vae, seed=3).save_pretrained(folder)


def save_vgg19(path: Path, width: int = 64) -> None:
    """torchvision's VGG19, its first layer so wide, as its .pth holds it but for the classifier."""
    torch.manual_seed(0)
    config = torchvision.models.vgg.cfgs["E"]
    layers = torchvision.models.vgg.make_layers(
        [layer if layer == "M" else int(layer) * width // 64 for layer in config]
    )
    torch.save({f"features.{name}": w for name, w in layers.state_dict().items()}, path)
