"""The photographs that a manifest was made of, and their distance maps, as far as they are here."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lasr.device import Device, pick_device
from lasr.errors import UserError
from pipeline.build.cache import Cache
from pipeline.build.fingerprint import fingerprint
from pipeline.config import CACHE_FOLDER, work_folder
from pipeline.stages import depth, images
from pipeline.stages.depth import DepthModel, at_size, load_depth
from pipeline.stages.images import Unusable
from pipeline.stages.select import box_mean
from pipeline.storage import StoragePath
from schemas.manifest import Manifest


class Missing(Exception):
    """Why a photograph or its distance map cannot be shown."""


class Originals:
    """Looks for photographs by the names in a manifest.

    given: where they are, as `--images` of the build; by default where the build found them, as far
    as that is on this machine. Raises UserError: a given path leads nowhere.
    """

    def __init__(self, manifest: Manifest, given: Sequence[str] | None, device: Device):
        self.device = device
        self.parameters = manifest.metadata.get("parameters", {})
        self._cache_folder = work_folder(StoragePath(str(manifest.path))) / CACHE_FOLDER
        recorded = [path for path in self.parameters.get("images", []) if "://" not in path]
        try:
            found = images.find(given or recorded) if given or recorded else []
        except UserError:
            if given:
                raise
            found = []
        self.found = {photograph.name: photograph for photograph in found}

    def pixels(self, name: str, image_id: str) -> np.ndarray:
        """H x W x 3 uint8. Raises Missing; another file of that name is none of the manifest's."""
        if name not in self.found:
            raise Missing("the photograph is not on this machine")
        try:
            photograph = images.load(self.found[name], min_side=1)
        except Unusable as why:
            raise Missing(f"the photograph cannot be read: {why.reason}") from why
        if photograph.image_id != image_id:
            raise Missing("the photograph has changed since the build")
        return photograph.pixels

    def distance(self, image_id: str, depth_model: str, pixels: np.ndarray) -> np.ndarray:
        """H x W float32 in 0..1, box-filtered as for choosing patches. Raises Missing.

        From the maps that the build kept, else by the estimator where it is on this machine.
        """
        # As in `depth.fingerprint_inputs`: the seed counts for estimators that draw noise.
        for noise in (None, self.parameters.get("seed", 0)):
            maps = Cache(self._cache_folder, fingerprint(depth.VERSION, depth_model, noise), "")
            if (distance := maps.distance(image_id)) is not None:
                return box_mean(at_size(distance, pixels.shape))
        if self._estimator is None or self._estimator.identity != depth_model:
            raise Missing(f"no distance map was kept, and {depth_model} is not on this machine")
        return box_mean(self._estimator.distance(pixels))

    @cached_property
    def _estimator(self) -> DepthModel | None:
        name = self.parameters.get("depth", "colour-attenuation")
        try:
            return load_depth(name, pick_device(self.device), self.parameters.get("seed", 0))
        except UserError:
            return None
