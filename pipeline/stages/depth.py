"""Depth estimators behind one interface: photographs in, distance out (0 = nearest, 1 = farthest).

Estimators differ in sign. Each adapter converts its output to distance once: with a wrong sign LR
and HR patches would change places without any error.

An estimator is one module of this package, named after its family in the registry of weights:
`scene_layout`, `colour_attenuation`, `depth_anything`, `depthfm`. `Estimator` lists what such a
module defines, and docs/extend.md adds one.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lasr.device import Precision
from lasr.weights.locate import Located, WeightsError
from lasr.weights.registry import TABLE

if TYPE_CHECKING:
    import torch

VERSION = 2  # raise it when a photograph gets another distance map than before


class DepthConfig(BaseModel):
    """The parameters of this stage."""

    model_config = ConfigDict(frozen=True)

    depth: str | None = Field(
        None, description="depth estimator: a name or a folder (default: the profile's)"
    )


def fingerprint_inputs(located: Located, seed: int, precision: Precision) -> tuple[object, ...]:
    """What determines a distance map. precision: not `auto`.

    The seed counts only if the estimator draws noise, the precision only of a network.
    """
    module = estimator(located)
    # float32 adds nothing: maps that were computed before there was a choice stay valid.
    other = [precision] if module.IS_NETWORK and precision != "float32" else []
    return VERSION, located.identity, seed if module.DRAWS_NOISE else None, *other


@dataclass(frozen=True)
class DepthModel:
    """A loaded depth estimator.

    It works in two steps, so that threads can prepare photographs while the network runs.
    """

    identity: str  # the manifest's column depth_model
    # H x W x 3 uint8 -> an array; arrays of equal shape can share a call of `predict`.
    prepare: Callable[[np.ndarray], np.ndarray]
    # Prepared arrays of one shape, as many as `batch_of` says -> one h x w float32 map in 0..1 for
    # each, at the estimator's own resolution.
    predict: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
    batch: int
    is_network: bool  # its maps are packed (see `pack`) and cached
    # Whether photographs of this prepared shape are common enough to fill a batch.
    is_common: Callable[[tuple[int, ...]], bool] = lambda shape: True

    def distance(self, photograph: np.ndarray) -> np.ndarray:
        """H x W x 3 uint8 -> H x W float32 in 0..1, 0 = nearest, 1 = farthest."""
        (distance,) = self.predict_some([self.prepare(photograph)])
        return at_size(unpack(pack(distance)) if self.is_network else distance, photograph.shape)

    def batch_of(self, shape: tuple[int, ...]) -> int:
        """How many prepared arrays of a shape share a call: `batch`, or 1 if the shape is rare."""
        return self.batch if self.is_common(shape) else 1

    def predict_some(self, prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Predict 1 to `batch_of` prepared arrays of one shape.

        The batch is padded with copies of the first array: kernels choose their order of summation
        by batch size, and a map must not depend, to the last bit, on which photographs share the
        call. Its size depends on the shape alone.
        """
        padded = [*prepared, *[prepared[0]] * (self.batch_of(prepared[0].shape) - len(prepared))]
        return self.predict(padded)[: len(prepared)]


class Estimator(Protocol):
    """What the module of an estimator defines."""

    IS_NETWORK: bool  # whether computing a map costs more than reading one from the cache
    DRAWS_NOISE: bool  # whether a map depends on the seed

    def recognises(self, path: Path) -> bool:
        """Whether a user's file or folder holds weights of this family; reads little of it."""

    def load(
        self, located: Located, device: "torch.device", seed: int, precision: Precision
    ) -> DepthModel:
        """Load the weights. precision: not `auto`. Raises WeightsError."""


def with_family(located: Located) -> Located:
    """Complete weights given by path with their family, found from their content.

    Weights of the registry have it already. Raises WeightsError: no estimator recognises the path,
    or the registry's entry is no estimator.
    """
    if located.family or located.path is None:
        estimator(located)
        return located
    for family in _families():
        if _module(family).recognises(located.path):
            return replace(located, family=family)
    if located.path.is_file():
        from lasr.weights.tensors import read_content

        read_content(located.path)  # names a damaged file as such
    raise WeightsError(
        f"{located.path}: not a depth estimator",
        "give the folder of a Depth Anything V2 (config.json, preprocessor_config.json,"
        " model.safetensors), DepthFM's depthfm-v1.ckpt, or a name of `lasr weights list`",
    )


def estimator(located: Located) -> Estimator:
    """The module that loads these weights. Raises WeightsError: they are no estimator."""
    if located.family not in _families():
        raise WeightsError(
            f"{located.name}: not a depth estimator by itself", "choose one of `lasr weights list`"
        )
    return _module(located.family)


def load_depth(
    located: Located, device: "torch.device", seed: int = 0, precision: Precision = "float32"
) -> DepthModel:
    """Load a depth estimator. seed: of the noise that some draw. Raises WeightsError."""
    located = with_family(located)
    return estimator(located).load(located, device, seed, precision)


def _families() -> list[str]:
    """The families of the registry that are estimators: those with a module of that name."""
    here = Path(__file__).parent
    families = dict.fromkeys(w.family for w in TABLE.values() if w.kind == "depth")
    return [family for family in families if (here / f"{family}.py").is_file()]


def _module(family: str) -> Estimator:
    return cast(Estimator, importlib.import_module(f"pipeline.stages.{family}"))


def pack(distance: np.ndarray) -> np.ndarray:
    """0..1 to uint16, the form in which maps are cached.

    Patches are always selected from unpacked maps, so a cached map gives the same patches.
    """
    return (distance * 65535).round().astype(np.uint16)


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack`, to half of 1/65535."""
    return packed.astype(np.float32) / np.float32(65535)


def at_size(distance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize a map to a photograph's (height, width, …): bicubic as in transformers, in 0..1."""
    height, width = shape[:2]
    if distance.shape == (height, width):
        return distance
    resized = cv2.resize(distance, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(resized, 0, 1, out=resized)


def normalise(values: np.ndarray) -> np.ndarray:
    """Stretch a map to 0..1, float32; a constant map becomes 0. Raises ValueError: not finite."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the depth estimate is not finite")
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)
