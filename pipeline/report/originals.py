"""The photographs behind a manifest and their distance maps, if they are on this machine."""

import posixpath
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.pictures.samples import LARGEST
from lasr.weights.locate import locate
from pipeline.build.cache import Cache
from pipeline.build.fingerprint import fingerprint
from pipeline.config import CACHE_FOLDER, work_folder
from pipeline.inputs.photographs import Found, find
from pipeline.stages import depth, images
from pipeline.stages.depth import DepthModel, at_size, load_depth
from pipeline.stages.images import Unusable
from pipeline.stages.select import box_mean
from pipeline.storage import StoragePath
from schemas.manifest import Manifest


class Missing(Exception):
    """The reason why a photograph or its distance map cannot be shown."""


class Originals:
    """Finds photographs by the names in a manifest.

    paths: as `--images` of the build; by default those that the build recorded, if they exist.
    Raises UserError if a given path does not exist.
    """

    def __init__(self, manifest: Manifest, paths: Sequence[str] | None, device: Device):
        self.device = device
        self.parameters = manifest.metadata.get("parameters", {})
        self._cache_folder = work_folder(StoragePath(str(manifest.path))) / CACHE_FOLDER
        recorded = [path for path in self.parameters.get("images", []) if "://" not in path]
        try:
            found = find(paths or recorded) if paths or recorded else []
        except UserError:
            if paths:
                raise
            found = []
        self.found = _names_of_0_1_0(found) | {photograph.name: photograph for photograph in found}

    def pixels(self, name: str, image_id: str) -> np.ndarray:
        """Return a photograph, H x W x 3 uint8.

        Raises Missing if it is not here, cannot be read, or has changed since the build.
        """
        if name not in self.found:
            raise Missing("the photograph is not on this machine")
        try:
            photograph = images.load(self.found[name], 1, LARGEST)
        except Unusable as why:
            raise Missing(f"the photograph cannot be read: {why.reason}") from why
        if photograph.image_id != image_id:
            raise Missing("the photograph has changed since the build")
        return photograph.pixels

    def distance(self, image_id: str, depth_model: str, pixels: np.ndarray) -> np.ndarray:
        """Return the distance map of a photograph, H x W float32 in 0..1, box-filtered.

        It comes from the cache of the build, or else from the estimator. Raises Missing if neither
        is on this machine.
        """
        # As in `depth.fingerprint_inputs`: the seed matters for estimators that draw noise.
        precision = self.parameters.get("precision", "float32")
        other = [] if precision == "float32" else [precision]
        for noise in (None, self.parameters.get("seed", 0)):
            maps = fingerprint(depth.VERSION, depth_model, noise, *other)
            cache = Cache(self._cache_folder, maps, "")
            if (distance := cache.distance(image_id)) is not None:
                return box_mean(at_size(distance, pixels.shape))
        if self._estimator is None or self._estimator.identity != depth_model:
            raise Missing(f"the distance map is not cached, and {depth_model} is not here")
        return box_mean(self._estimator.distance(pixels))

    @cached_property
    def _estimator(self) -> DepthModel | None:
        name = self.parameters.get("depth", "colour-attenuation")
        try:
            located, seed = locate(name, "depth"), self.parameters.get("seed", 0)
            return load_depth(located, pick_device(self.device), seed)
        except UserError:
            return None


def _names_of_0_1_0(found: Sequence[Found]) -> dict[str, Found]:
    """Photographs by their paths relative to the deepest folder that contains them all."""
    addresses = {str(photograph.path): photograph for photograph in found}
    if len({"://" in address for address in addresses}) != 1:
        return {}
    root = posixpath.commonpath([posixpath.dirname(address) for address in addresses])
    return {posixpath.relpath(address, root): one for address, one in addresses.items()}
