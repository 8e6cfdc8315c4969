"""A cache of what the networks computed, by content: a rerun with other parameters reuses it.

    distance/<depth>/ab/<image_id>.png         distance map of a photograph, 16 bit, 65535 = far
    features/<clip>/ab/<image_id>.safetensors  CLIP features of its patches, by patch_id

<depth> and <clip> are fingerprints. Entries are not made durable (no fsync), because they can be
computed again: one that a power failure cut short does not decode and counts as absent. Several
builds may share a cache (`--cache`).
"""

import contextlib
import io
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import safetensors.numpy
from PIL import Image
from safetensors import SafetensorError

from pipeline.build.fingerprint import Identities
from pipeline.stages.depth import pack, unpack
from pipeline.storage import StoragePath

# What may be removed: an entry, and the temporary file of one, which a killed build left.
_MODEL, _SHELF = re.compile("[0-9a-f]{16}"), re.compile("[0-9a-f]{2}")
_ENTRY = re.compile(r"[0-9a-f]{64}\.(png|safetensors)|\.[a-z0-9_]{8}\.tmp")


@dataclass(frozen=True)
class Cache:
    """The cached maps of one depth estimator and features of one CLIP."""

    folder: StoragePath
    depth: str  # Identities.depth
    features: str  # Identities.features

    def distance(self, image_id: str) -> np.ndarray | None:
        """h x w float32 in 0..1 at the estimator's resolution; None if absent or damaged."""
        content = _read(self._distance_path(image_id))
        if content is None:
            return None
        try:
            with Image.open(io.BytesIO(content)) as image:
                return unpack(np.asarray(image).astype(np.uint16))
        except (OSError, SyntaxError, ValueError):
            return None

    def put_distance(self, image_id: str, distance: np.ndarray) -> np.ndarray:
        """Write a map; returns it as `distance` will read it."""
        packed = pack(distance)
        done, png = cv2.imencode(".png", packed, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert done, "OpenCV writes 16-bit grey PNG"
        self._distance_path(image_id).write_bytes(png.tobytes())
        return unpack(packed)

    def patch_features(self, image_id: str) -> dict[str, np.ndarray]:
        """patch_id -> c float32, for the patches of a photograph whose features are cached."""
        content = _read(self._features_path(image_id))
        try:
            return safetensors.numpy.load(content) if content else {}
        except SafetensorError:
            return {}

    def put_features(self, image_id: str, features: dict[str, np.ndarray]) -> None:
        """Replace the cached features of a photograph's patches."""
        self._features_path(image_id).write_bytes(safetensors.numpy.save(features))

    def _distance_path(self, image_id: str) -> StoragePath:
        return self.folder / "distance" / self.depth / image_id[:2] / f"{image_id}.png"

    def _features_path(self, image_id: str) -> StoragePath:
        return self.folder / "features" / self.features / image_id[:2] / f"{image_id}.safetensors"


def _read(path: StoragePath) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def prune(folder: StoragePath, identities: Identities, image_ids: Collection[str]) -> None:
    """Remove the entries of other models and of other photographs from a build's own cache."""
    for kind, current in (("distance", identities.depth), ("features", identities.features)):
        for model in filter(_MODEL.fullmatch, (folder / kind).names()):
            wanted = image_ids if model == current else ()
            names = (folder / kind / model).names()
            subfolders = [folder / kind / model / name for name in filter(_SHELF.fullmatch, names)]
            with ThreadPoolExecutor(8) as executor:
                list(executor.map(lambda shelf, ids=wanted: _prune(shelf, ids), subfolders))
            if model != current:
                _remove_empty(folder / kind / model)


def _prune(subfolder: StoragePath, image_ids: Collection[str]) -> None:
    for name in filter(_ENTRY.fullmatch, subfolder.names()):
        if name.split(".")[0] not in image_ids:
            (subfolder / name).remove()
    if not image_ids:
        _remove_empty(subfolder)


def _remove_empty(folder: StoragePath) -> None:
    """Remove a folder of a local disk unless somebody put something into it."""
    if folder.is_local:
        with contextlib.suppress(OSError):
            folder.path.rmdir()
