"""Depth estimators behind one contract: photographs in, distance out (0 = nearest, 1 = farthest).

Estimators disagree about the sign. Each adapter turns its own into distance here, once: a wrong
sign would swap LR and HR without any other sign of trouble.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lasr.weights.locate import Located, WeightsError, check_expected, locate
from pipeline.stages.depthfm import DepthFMDistance, load_depthfm

BATCH = {"cpu": 1, "cuda": 8}  # photographs of one size per call of Depth Anything


@dataclass(frozen=True)
class DepthModel:
    """A depth estimator that is loaded and speaks of distance.

    Its work is in two steps, so that threads can prepare photographs while the network runs.
    """

    identity: str  # the manifest's column depth_model
    # H x W x 3 uint8 -> what `predict` reads; those of one shape can share a call.
    prepare: Callable[[np.ndarray], np.ndarray]
    # Exactly `batch` prepared photographs of one shape -> h x w float32 distances in 0..1 each, at
    # the estimator's own resolution.
    predict: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    batch: int
    is_network: bool  # its maps are worth keeping

    def distance(self, photograph: np.ndarray) -> np.ndarray:
        """H x W x 3 uint8 -> H x W float32 in 0..1, 0 = nearest, 1 = farthest of it."""
        (distance,) = self.predict_some([self.prepare(photograph)])
        return at_size(unpack(pack(distance)) if self.is_network else distance, photograph.shape)

    def predict_some(self, prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`predict` for up to `batch` of one shape; a call always has the same size.

        Kernels choose their order of summation by the size of a batch: filled up with copies of
        the first, a map does not depend, to the last bit, on who shares the call.
        """
        filled = [*prepared, *[prepared[0]] * (self.batch - len(prepared))]
        return self.predict(filled)[: len(prepared)]


def pack(distance: np.ndarray) -> np.ndarray:
    """0..1 to uint16, as maps of networks are kept; patches are always chosen from the packed."""
    return (distance * 65535).round().astype(np.uint16)


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack`, to half of 1/65535."""
    return packed.astype(np.float32) / np.float32(65535)


def at_size(distance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map at a photograph's (height, width, …), bicubic as transformers does it, within 0..1."""
    height, width = shape[:2]
    if distance.shape == (height, width):
        return distance
    return cv2.resize(distance, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def load_depth(name_or_path: str, device: torch.device, seed: int = 0) -> DepthModel:
    """Load a depth estimator by name (see lasr.weights.locate), or from a folder or file.

    A folder is a Depth Anything V2 model in the Hugging Face format; a file is a DepthFM
    checkpoint, with its autoencoder in `vae/` beside it or fetched as `sd15-vae`.
    seed: of DepthFM's noise. Raises WeightsError.
    """
    located = locate(name_or_path, "depth")
    if located.path is None:
        return DepthModel(located.identity, attenuation, list, batch=1, is_network=False)
    if draws_noise(located):
        return _depthfm(located, device, seed)
    return _depth_anything(located, located.path, device)


def normalise(values: np.ndarray) -> np.ndarray:
    """Stretch a map to 0..1, float32; a constant map becomes 0. Raises ValueError: not finite."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the depth estimate is not finite")
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


_VALUE = np.arange(256, dtype=np.float32)
_WHERE_GREY = (0.121779 + 0.959710 * _VALUE / 255 - 0.780245 * (_VALUE > 0)).astype(np.float32)
_PER_MINIMUM = (0.780245 / np.maximum(_VALUE, 1)).astype(np.float32)


def attenuation(photograph: np.ndarray) -> np.ndarray:
    """Haze grows with distance: bright and pale means far. A formula, no weights.

    Zhu, Mai, Shao, "A Fast Single Image Haze Removal Algorithm Using Color Attenuation Prior",
    IEEE TIP 2015: d = 0.121779 + 0.959710 V - 0.780245 S (eq. 8 with the learned coefficients),
    then the minimum over 15x15 (eq. 21), so that a white thing nearby is not taken for haze.
    H x W x 3 uint8 -> H x W float32 in 0..1.
    """
    # With V = max / 255 and S = 1 - min / max, both from bytes: a third of a float HSV's time.
    red, green, blue = cv2.split(photograph)
    value = cv2.max(cv2.max(red, green), blue)
    least = cv2.min(cv2.min(red, green), blue)
    distance = cv2.multiply(cv2.LUT(value, _PER_MINIMUM), least, dtype=cv2.CV_32F)
    distance = cv2.add(distance, cv2.LUT(value, _WHERE_GREY))
    distance = cv2.erode(distance, np.ones((15, 15), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return normalise(distance)


def draws_noise(located: Located) -> bool:
    """Whether an estimator's maps hang on the seed: DepthFM's do, it is the one in a file."""
    return located.path is not None and located.path.is_file()


def _depth_anything(located: Located, folder: Path, device: torch.device) -> DepthModel:
    """Depth Anything V2 (Yang et al. 2024) predicts *inverse* depth, larger = nearer: inverted."""
    from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor
    from transformers.utils import logging

    _check_configs(located, folder)
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it reports is checked here
    try:
        processor: Any = DPTImageProcessor.from_pretrained(folder, local_files_only=True)
        model, report = DepthAnythingForDepthEstimation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers, its configs and safetensors raise many kinds
        raise WeightsError(
            f"{folder}: not a whole Depth Anything V2 folder: {' '.join(str(error).split())[:300]};"
            " fetch it again"
        ) from error
    finally:
        logging.set_verbosity(before)
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        if report[problem]:  # transformers warns only, and leaves random numbers in their place
            raise WeightsError(
                f"{folder}: config.json and model.safetensors do not belong together:"
                f" {problem.replace('_', ' ')}: {min(map(str, report[problem]))}; fetch both again"
            )
    model = model.to(device).eval()

    def prepare(photograph: np.ndarray) -> np.ndarray:
        # Keeps the aspect ratio and rounds to the ViT's patch: sizes differ between photographs.
        pixels: np.ndarray = processor(images=photograph, return_tensors="np")["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def predict(prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        batch = torch.from_numpy(np.stack(prepared)).to(device)
        nearness = model(batch).predicted_depth.float().cpu().numpy()
        return [normalise(-one) for one in nearness]

    return DepthModel(located.identity, prepare, predict, BATCH[device.type], is_network=True)


def _check_configs(located: Located, folder: Path) -> None:
    """Refuse what transformers would load just as well: another network, sign or program.

    Raises WeightsError.
    """
    configs: dict[str, dict[str, Any]] = {}
    for name in ("config.json", "preprocessor_config.json"):
        try:
            configs[name] = dict(json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{folder}: not a Depth Anything V2 folder (config.json, preprocessor_config.json,"
                f" model.safetensors): {name}: {error}"
            ) from error
        if "auto_map" in configs[name]:
            raise WeightsError(
                f"{folder / name}: names code of its own (auto_map), which is never run here;"
                " take the publisher's folder"
            )
    config, kind = configs["config.json"], configs["config.json"].get("model_type")
    backbone = config.get("backbone_config") or {}
    if (kind, backbone.get("model_type")) != ("depth_anything", "dinov2"):
        raise WeightsError(
            f"{folder}: is {kind} over {backbone.get('model_type')}, not Depth Anything V2; its"
            " depth may have the other sign; take a depth-anything-v2-… of"
            " `python -m lasr.weights list`"
        )
    if config.get("depth_estimation_type", "relative") != "relative":
        raise WeightsError(
            f"{folder}: estimates metres, which grow with distance: LR and HR would change places;"
            " take Depth Anything V2 without Metric in its name"
        )
    check_expected(located, {"hidden_size": backbone.get("hidden_size")})


def _depthfm(located: Located, device: torch.device, seed: int) -> DepthModel:
    """DepthFM (Gui et al. 2025), the paper's estimator: its output grows with distance, kept."""
    assert located.path is not None
    beside = located.path.parent / "vae"
    folder = located.path.parent if beside.is_dir() else locate("sd15-vae", "depth").path
    assert folder is not None
    vae = folder / "vae"
    try:
        estimate = DepthFMDistance(load_depthfm(located.path, vae, device), seed)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    # One at a time: each has its own noise from the same seed, and one fills a GPU.
    return DepthModel(
        located.identity,
        estimate.prepare,
        lambda prepared: [estimate.predict(one) for one in prepared],
        batch=1,
        is_network=True,
    )
