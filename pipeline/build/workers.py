"""What threads do to one photograph before, between and after the networks."""

import logging
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lasr.errors import UserError, note_traceback
from lasr.pictures.png import decode_png
from pipeline.build.cache import Cache
from pipeline.build.models import Models
from pipeline.build.parts import ReusableRows
from pipeline.config import BuildConfig
from pipeline.inputs.photographs import Found
from pipeline.stages import images
from pipeline.stages.depth import at_size
from pipeline.stages.images import Photograph, Unusable
from pipeline.stages.rows import catalogue_row, patch_row, unusable_row
from pipeline.stages.select import Patch, select
from schemas.manifest import PATCH_SIZE, Row

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LARGE = 2**25  # pixels
_one_large = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """A photograph that waits for the depth estimator."""

    photograph: Photograph
    prepared: np.ndarray  # by DepthModel.prepare


@dataclass(frozen=True)
class Estimated:
    """A photograph with its distance map, h x w float32 at the estimator's resolution."""

    photograph: Photograph
    distance: np.ndarray
    from_cache: bool


@dataclass(frozen=True)
class Cropped:
    """The catalogue row of a photograph, and its manifest rows without captions."""

    entry: Row
    rows: list[Row] = field(default_factory=list)
    features: dict[str, np.ndarray] = field(default_factory=dict)  # by patch_id, those known
    prepared: "dict[str, torch.Tensor]" = field(default_factory=dict)  # by patch_id, the others


@dataclass(frozen=True)
class Worker:
    """The steps between the networks, and what all threads share."""

    config: BuildConfig
    models: Models
    cache: Cache
    reusable: ReusableRows

    def read(self, found: Found) -> Decoded | Estimated | Cropped:
        """Read and decode a photograph, or take its rows from a finished part."""
        stage, photograph = "images", None
        try:
            if found.name in self.reusable:
                stage = "captions"
                return self._with_features(*self.reusable.rows(found.name))
            photograph = images.load(found, PATCH_SIZE["hr"], self.config.max_pixels)
            stage = "depth"
            if self.models.caches_maps:
                distance = self.cache.distance(photograph.image_id)
                if distance is not None:
                    return Estimated(photograph, distance, from_cache=True)
            with _alone_if_large(photograph):
                return Decoded(photograph, self.models.depth.prepare(photograph.pixels))
        except Exception as error:
            return failed(stage, found, error, photograph)

    def crop(self, item: Estimated | Cropped) -> Cropped:
        """Select a photograph's patches and cut them out."""
        if isinstance(item, Cropped):
            return item
        photograph, distance, stage = item.photograph, item.distance, "depth"
        pixels = photograph.pixels
        try:
            if self.models.caches_maps and not item.from_cache:
                distance = self.cache.put_distance(photograph.image_id, distance)
            with _alone_if_large(photograph):
                distance = at_size(distance, pixels.shape)
                stage = "select"
                patches = select(pixels, distance, photograph.image_id, self.config)
            stage = "rows"
            crops = [cut_out(pixels, patch) for patch in patches]
            strategy, depth_model = self.config.strategy, self.models.depth_weights.identity
            rows = [
                patch_row(photograph, patch, crop, strategy, depth_model)
                for patch, crop in zip(patches, crops, strict=True)
            ]
            entry = catalogue_row(photograph, patches)
            stage = "captions"
            return self._with_features(entry, rows, crops)
        except Exception as error:
            return failed(stage, photograph.found, error, photograph)

    def _with_features(
        self, entry: Row, rows: list[Row], crops: list[np.ndarray] | None = None
    ) -> Cropped:
        """Add cached features, and prepare the patches that have none for CLIP."""
        known = {}
        if rows:
            known = self.cache.patch_features(entry["image_id"], self.models.captioner.length)
        prepared = {}
        for index, row in enumerate(rows):
            if row["patch_id"] not in known:
                crop = crops[index] if crops else decode_png(row["image"]["bytes"])
                prepared[row["patch_id"]] = self.models.captioner.prepare(crop)
        return Cropped(entry, rows, known, prepared)


def _alone_if_large(photograph: Photograph) -> AbstractContextManager[object]:
    """A lock for large photographs, one at a time: maps take up to 40 bytes per pixel."""
    return _one_large if photograph.pixels[..., 0].size > LARGE else nullcontext()


def failed(
    stage: str, found: Found, error: Exception, photograph: Photograph | None = None
) -> Cropped:
    """A photograph without patches; its catalogue row names the stage and the error.

    Raises a UserError again (missing weights, a full disk): it concerns all photographs.
    """
    if isinstance(error, UserError):
        raise error
    if not isinstance(error, Unusable):
        reason = f"{stage}: {type(error).__name__}: {error}"
        log.warning("%s: failed (%s)", found.name, reason)
        note_traceback(log, error)
        error = Unusable("failed", reason, photograph.image_id if photograph else None)
    return Cropped(unusable_row(found, error, photograph))


def cut_out(pixels: np.ndarray, patch: Patch) -> np.ndarray:
    """The pixels of a patch, size x size x 3; a view."""
    return pixels[patch.y : patch.y + patch.size, patch.x : patch.x + patch.size]
