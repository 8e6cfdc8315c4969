"""Networks of full and of small size with random weights, and how work on a device is timed."""

import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from torch import nn

from benchmarks import train_step

SMALL_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip


def wait(device: torch.device) -> None:
    """Block until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(
    work: Callable[[], object], device: torch.device, seconds: float = 1.0, most: int = 200
) -> float:
    """Milliseconds of a call: the median of three rounds of calls launched one after the other.

    One call warms up. seconds: of all rounds together. most: calls a round.
    """
    work()
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    calls = max(1, min(most, int(seconds / 3 / max(time.perf_counter() - started, 1e-6))))
    found = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        found.append(1e3 * (time.perf_counter() - started) / calls)
    return statistics.median(found)


def free(device: torch.device) -> None:
    """Give back what was allocated, and measure peaks anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float:
    """The most memory that tensors took since `free`, in GB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0


def clip_folder(folder: Path, small: bool, device: torch.device) -> Path:
    """A CLIP of ViT-L/14's shape as open_clip saves one, in float16, made once."""
    target = folder / "clip"
    if (target / "open_clip_config.json").exists():
        return target
    target.mkdir(exist_ok=True)
    shape = SMALL_CLIP if small else open_clip.get_model_config("ViT-L-14-quickgelu")
    shape = {k: copy.deepcopy(v) for k, v in shape.items() if k != "custom_text"}
    torch.manual_seed(0)
    with device:
        state = open_clip.CLIP(**shape).state_dict()
    halves = {name: tensor.half().contiguous().cpu() for name, tensor in state.items()}
    safetensors.torch.save_file(halves, target / "open_clip_model.safetensors")
    preprocess = {
        "mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic", "resize_mode": "shortest",
    }  # fmt: skip
    content = {"model_cfg": shape, "preprocess_cfg": preprocess}
    (target / "open_clip_config.json").write_text(json.dumps(content))
    return target


DEPTH = {  # width, layers, heads, neck, fusion, the layers that the neck reads
    "small": (384, 12, 6, [48, 96, 192, 384], 64, [3, 6, 9, 12]),
    "base": (768, 12, 12, [96, 192, 384, 768], 128, [3, 6, 9, 12]),
    "large": (1024, 24, 16, [256, 512, 1024, 1024], 256, [5, 12, 18, 24]),
    "tiny": (32, 4, 2, [8, 16, 32, 32], 16, [1, 2, 3, 4]),
}


def depth_folder(folder: Path, size: str, device: torch.device) -> Path:
    """A Depth Anything V2 as transformers saves one, made once. size: of DEPTH."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    target = folder / f"depth-{size}"
    if (target / "model.safetensors").exists():
        return target
    width, layers, heads, neck, fusion, read = DEPTH[size]
    side = 70 if size == "tiny" else 518
    backbone = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=side,
        patch_size=14, out_indices=read, reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=width, patch_size=14,
        neck_hidden_sizes=neck, fusion_hidden_size=fusion,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        model = DepthAnythingForDepthEstimation(config)
    model.to("cpu").save_pretrained(target)
    DPTImageProcessor(
        size={"height": side, "width": side}, keep_aspect_ratio=True, ensure_multiple_of=14,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3,
    ).save_pretrained(target)  # fmt: skip
    return target


def sr_file(folder: Path, small: bool) -> Path:
    """An RRDB x4, made once: 23 blocks of 64 features, or one of 8."""
    from trainer.models.rrdb import untrained_rrdb
    from trainer.models.save import write_tensors

    target = folder / "sr.safetensors"
    if not target.exists():
        network = untrained_rrdb(8, 1) if small else untrained_rrdb()
        write_tensors(target, network.state_dict())
    return target


def vgg_file(folder: Path, small: bool) -> Path:
    """A VGG19 with torchvision's keys, made once."""
    from trainer.models.save import write_tensors
    from trainer.models.vgg import TAPS, VGG, WIDTHS

    target = folder / "vgg.safetensors"
    if not target.exists():
        widths = [width // 8 if small else width for width in WIDTHS]
        network = VGG([max(TAPS, key=lambda name: TAPS[name])], widths)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        write_tensors(target, network.state_dict())
    return target


def step_networks(small: bool, device: torch.device) -> tuple[Any, Any, Any]:
    """SR network, encoders and VGG of a training step, seeded."""
    return train_step.networks("small" if small else "paper", device)
