"""Depth Anything V2 (Yang et al. 2024) through transformers.

It predicts *inverse* depth (larger = nearer), so the adapter inverts it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lasr.device import Precision, autocast
from lasr.errors import one_line
from lasr.files import read_text
from lasr.weights.locate import Located, WeightsError, check_expected
from pipeline.stages.depth import DepthModel, normalise

if TYPE_CHECKING:
    import torch

IS_NETWORK = True
DRAWS_NOISE = False
# Photographs of one size per call. On an H100 four at a time are 2.8 times as fast as one by one,
# and maps differ by up to 0.006 between the two: a batch's size must not depend on its neighbours.
# Eight would be 1.2 times as fast as four, and oftener padded.
BATCH = {"cpu": 1, "cuda": 4}
COMMON = (1, 5 / 4, 4 / 3, 3 / 2, 16 / 9)  # sides of cameras' pictures; others run alone
PATCH = 14  # pixels to which sides are rounded
_CONFIGS = ("config.json", "preprocessor_config.json")


def recognises(path: Path) -> bool:
    """Whether a folder has the config of a model in the Hugging Face format; `load` checks more."""
    return any((path / name).is_file() for name in _CONFIGS)


def is_common(shape: tuple[int, ...]) -> bool:
    """Whether a prepared photograph (3, h, w) has the sides of a camera's pictures."""
    short, long = sorted(shape[-2:])
    return any(abs(long - ratio * short) < PATCH for ratio in COMMON)


def load(located: Located, device: "torch.device", seed: int, precision: Precision) -> DepthModel:
    """Load a folder in the Hugging Face format. Raises WeightsError: damaged, or another model."""
    import torch

    assert located.path is not None
    processor, model = _read(located, located.path)
    # transformers loads in the file's own precision, which may be half.
    model = model.float().to(device).eval()
    gpu = device.type == "cuda"
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1) * 255
        for values in (processor.image_mean, processor.image_std)
    )

    def prepare(photograph: np.ndarray) -> np.ndarray:
        # Keeps the aspect ratio and rounds to the ViT's patch: sizes differ between photographs.
        # A GPU gets bytes, and makes numbers of them itself.
        done = processor(
            images=photograph, return_tensors="np", do_rescale=not gpu, do_normalize=not gpu
        )
        pixels: np.ndarray = done["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def predict(prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        batch = torch.from_numpy(np.stack(prepared))
        if gpu:
            batch = (batch.pin_memory().to(device, non_blocking=True).float() - mean) / std
        else:
            batch = batch.to(device)
        with autocast(device, precision):
            nearness = model(batch).predicted_depth
        return [normalise(-one) for one in nearness.float().cpu().numpy()]

    batch = BATCH["cuda" if gpu else "cpu"]
    return DepthModel(located.identity, prepare, predict, batch, IS_NETWORK, is_common)


def _read(located: Located, folder: Path) -> tuple[Any, Any]:
    """The image processor and the network. Raises WeightsError."""
    from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor
    from transformers.utils import logging

    _check_configs(located, folder)
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would report is checked below
    try:
        processor = DPTImageProcessor.from_pretrained(folder, local_files_only=True)
        model, report = DepthAnythingForDepthEstimation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise many types
        raise WeightsError(
            f"{folder}: not a complete Depth Anything V2 folder: {one_line(error)}",
            "fetch it again",
        ) from error
    finally:
        logging.set_verbosity(before)
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if report[problem]:  # transformers only warns, and fills in random numbers
            raise WeightsError(
                f"{folder}: config.json and model.safetensors do not fit each other:"
                f" {problem.replace('_', ' ')}: {min(map(str, report[problem]))}",
                "fetch both again",
            )
    return processor, model


def _check_configs(located: Located, folder: Path) -> None:
    """Refuse folders that transformers would load without complaint: another network, a network
    with the other sign, or code. Raises WeightsError."""
    configs: dict[str, dict[str, Any]] = {}
    for name in _CONFIGS:
        try:
            configs[name] = dict(json.loads(read_text(folder / name)))
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{folder}: {name} cannot be read ({one_line(error)})",
                "a Depth Anything V2 folder holds config.json, preprocessor_config.json and"
                " model.safetensors: fetch it again",
            ) from error
        if "auto_map" in configs[name]:
            raise WeightsError(
                f"{folder / name}: names code of its own (auto_map), which is never run here",
                "take the publisher's folder",
            )
    config, kind = configs["config.json"], configs["config.json"].get("model_type")
    backbone = config.get("backbone_config") or {}
    if (kind, backbone.get("model_type")) != ("depth_anything", "dinov2"):
        raise WeightsError(
            f"{folder}: is {kind} over {backbone.get('model_type')}, not Depth Anything V2; its"
            " depth may have the other sign",
            "take a depth-anything-v2-… of `lasr weights list`",
        )
    if config.get("depth_estimation_type", "relative") != "relative":
        raise WeightsError(
            f"{folder}: estimates metres, which grow with distance: LR and HR would change places",
            "take Depth Anything V2 without Metric in its name",
        )
    check_expected(located, {"hidden_size": backbone.get("hidden_size")})
