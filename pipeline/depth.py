"""Depth estimators behind one contract: photographs in, distance out (0 = nearest, 1 = farthest).

Estimators disagree about the sign. Each adapter turns its own into distance here, once: a wrong
sign would swap LR and HR without any other sign of trouble.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline.depthfm import DepthFMDistance, load_depthfm
from schemas.weights import Located, WeightsError, locate

# H x W x 3 uint8 photographs of any sizes -> H x W float32 distances in 0..1, each by itself.
Distances = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class DepthModel:
    """A depth estimator that is loaded and speaks of distance."""

    identity: str  # the manifest's column depth_model
    distances: Distances


def load_depth(name_or_path: str, device: torch.device, seed: int = 0) -> DepthModel:
    """Load a depth estimator by name (see schemas.weights), or from a folder or file.

    A folder is a Depth Anything V2 model in the Hugging Face format; a file is a DepthFM
    checkpoint, with its autoencoder in `vae/` beside it or fetched as `sd15-vae`.
    seed: of DepthFM's noise. Raises WeightsError.
    """
    located = locate(name_or_path, "depth")
    if located.path is None:
        return DepthModel(located.identity, colour_attenuation)
    if located.path.is_file():
        return DepthModel(located.identity, _depthfm(located, device, seed))
    return DepthModel(located.identity, _depth_anything(located.path, device))


def normalise(values: np.ndarray) -> np.ndarray:
    """Stretch a map to 0..1, float32; a constant map becomes 0. Raises ValueError: not finite."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the depth estimate is not finite")
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


def colour_attenuation(photographs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Haze grows with distance: bright and pale means far. A formula, no weights.

    Zhu, Mai, Shao, "A Fast Single Image Haze Removal Algorithm Using Color Attenuation Prior",
    IEEE TIP 2015: d = 0.121779 + 0.959710 V - 0.780245 S (eq. 8 with the learned coefficients),
    then the minimum over 15x15 (eq. 21), so that a white thing nearby is not taken for haze.
    """
    return [normalise(_attenuation(photograph)) for photograph in photographs]


def _attenuation(photograph: np.ndarray) -> np.ndarray:
    hsv = cv2.cvtColor(photograph.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    distance = 0.121779 + 0.959710 * hsv[..., 2] - 0.780245 * hsv[..., 1]
    return cv2.erode(distance, np.ones((15, 15), np.uint8), borderType=cv2.BORDER_REPLICATE)


def _depth_anything(folder: Path, device: torch.device) -> Distances:
    """Depth Anything V2 (Yang et al. 2024) predicts *inverse* depth, larger = nearer: inverted."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model = AutoModelForDepthEstimation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{folder}: not a Depth Anything V2 folder (config.json, preprocessor_config.json,"
            f" model.safetensors): {error}"
        ) from error
    model = model.to(device).eval()

    @torch.inference_mode()
    def distances(photographs: Sequence[np.ndarray]) -> list[np.ndarray]:
        # The processor keeps the aspect ratio and rounds to the ViT's patch, so sizes differ;
        # only photographs that come out alike can share a batch.
        inputs = [
            processor(images=photograph, return_tensors="pt")["pixel_values"][0]
            for photograph in photographs
        ]
        result: list[np.ndarray] = [np.empty(0)] * len(photographs)
        for shape in {tensor.shape for tensor in inputs}:
            members = [i for i, tensor in enumerate(inputs) if tensor.shape == shape]
            output = model(torch.stack([inputs[i] for i in members]).to(device))
            sizes = [photographs[i].shape[:2] for i in members]
            maps = processor.post_process_depth_estimation(output, target_sizes=sizes)
            for i, prediction in zip(members, maps, strict=True):
                nearness = prediction["predicted_depth"].float().cpu().numpy()
                result[i] = normalise(-nearness)
        return result

    return distances


def _depthfm(located: Located, device: torch.device, seed: int) -> Distances:
    """DepthFM (Gui et al. 2025), the paper's estimator: its output grows with distance, kept."""
    assert located.path is not None
    beside = located.path.parent / "vae"
    folder = located.path.parent if beside.is_dir() else locate("sd15-vae", "depth").path
    assert folder is not None
    vae = folder / "vae"
    try:
        return DepthFMDistance(load_depthfm(located.path, vae, device), seed)
    except ValueError as error:
        raise WeightsError(str(error)) from error
