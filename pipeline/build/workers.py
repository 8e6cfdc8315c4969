"""What is done to one photograph between the networks; run by many threads at once."""

import logging
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch

from lasr.errors import UserError
from lasr.pictures.png import decode_png
from pipeline.build.cache import Kept
from pipeline.build.earlier import EarlierRows
from pipeline.config import BuildConfig
from pipeline.stages import images
from pipeline.stages.depth import at_size
from pipeline.stages.images import Found, Photograph, Unusable
from pipeline.stages.models import Models
from pipeline.stages.rows import catalogue_row, patch_row, unusable_row
from pipeline.stages.select import Patch, select
from schemas.manifest import PATCH_SIZE, Row

log = logging.getLogger(__name__)

LARGE = 2**25  # pixels
_one_large = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """A photograph that waits for the depth estimator."""

    photograph: Photograph
    prepared: np.ndarray  # DepthModel.prepare


@dataclass(frozen=True)
class Measured:
    """A photograph with its distance map, h x w float32 at the estimator's resolution."""

    photograph: Photograph
    distance: np.ndarray
    is_kept: bool


@dataclass(frozen=True)
class Cut:
    """What a photograph gives: its row of the catalogue and rows without captions."""

    entry: Row
    rows: list[Row] = field(default_factory=list)
    features: dict[str, np.ndarray] = field(default_factory=dict)  # by patch_id, where known
    prepared: dict[str, torch.Tensor] = field(default_factory=dict)  # by patch_id, the others


@dataclass(frozen=True)
class Steps:
    """The steps of a shard, and what they share."""

    config: BuildConfig
    models: Models
    kept: Kept
    earlier: EarlierRows

    def read(self, found: Found) -> Decoded | Measured | Cut:
        """Read and decode a photograph, or fetch the rows that an earlier part has of it."""
        photograph = None
        try:
            if found.name in self.earlier:
                return self._with_features(*self.earlier.rows(found.name))
            photograph = images.load(found, PATCH_SIZE["hr"])
            distance = None
            if self.models.has_depth_network:
                distance = self.kept.distance(photograph.image_id)
            if distance is not None:
                return Measured(photograph, distance, is_kept=True)
            with _alone_if_large(photograph):
                return Decoded(photograph, self.models.depth.prepare(photograph.pixels))
        except Exception as error:
            return failed(found, error, photograph)

    def cut(self, item: Measured | Cut) -> Cut:
        """Choose a photograph's patches and cut them out."""
        if isinstance(item, Cut):
            return item
        photograph, distance = item.photograph, item.distance
        pixels = photograph.pixels
        try:
            if self.models.has_depth_network and not item.is_kept:
                distance = self.kept.keep_distance(photograph.image_id, distance)
            with _alone_if_large(photograph):
                distance = at_size(distance, pixels.shape)
                patches = select(pixels, distance, photograph.image_id, self.config)
            crops = [cut_out(pixels, patch) for patch in patches]
            strategy, depth_model = self.config.strategy, self.models.depth_located.identity
            rows = [
                patch_row(photograph, patch, crop, strategy, depth_model)
                for patch, crop in zip(patches, crops, strict=True)
            ]
            return self._with_features(catalogue_row(photograph, patches), rows, crops)
        except Exception as error:
            return failed(photograph.found, error, photograph)

    def _with_features(
        self, entry: Row, rows: list[Row], crops: list[np.ndarray] | None = None
    ) -> Cut:
        known = self.kept.patch_features(entry["image_id"]) if rows else {}
        prepared = {}
        for place, row in enumerate(rows):
            if row["patch_id"] not in known:
                crop = crops[place] if crops else decode_png(row["image"]["bytes"])
                prepared[row["patch_id"]] = self.models.captioner.prepare(crop)
        return Cut(entry, rows, known, prepared)


def _alone_if_large(photograph: Photograph) -> AbstractContextManager[object]:
    """Maps take up to 40 bytes a pixel: of large photographs one at a time is worked on."""
    return _one_large if photograph.pixels[..., 0].size > LARGE else nullcontext()


def failed(found: Found, error: Exception, photograph: Photograph | None = None) -> Cut:
    """A photograph that gives nothing; the catalogue says why. Raises what concerns all of them."""
    if isinstance(error, UserError):
        raise error  # missing weights, a full disk: not the photograph's fault
    if not isinstance(error, Unusable):
        log.warning("%s: failed (%s: %s)", found.name, type(error).__name__, error)
        image_id = photograph.image_id if photograph else None
        error = Unusable("failed", f"{type(error).__name__}: {error}", image_id)
    return Cut(unusable_row(found, error, photograph))


def cut_out(pixels: np.ndarray, patch: Patch) -> np.ndarray:
    return pixels[patch.y : patch.y + patch.size, patch.x : patch.x + patch.size]
