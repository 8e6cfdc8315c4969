"""A cache of what the networks computed, by content: a rerun with other parameters reuses it.

    distance/<depth>/ab/<image_id>.png         distance map of a photograph, 16 bit, 65535 = far
    features/<clip>/ab/<image_id>.safetensors  CLIP features of its patches, by patch_id

<depth> and <clip> are fingerprints. Entries are not made durable (no fsync), because they can be
computed again. Each holds a digest of its bytes (`schemas.digest`), which is checked whenever it is
read: one that has changed, was cut short, or has a wrong shape is named and computed again. Several
builds may share a cache (`--cache`).
"""

import contextlib
import io
import logging
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import safetensors.numpy
from PIL import Image
from safetensors import SafetensorError

from lasr.files import move_aside
from lasr.pictures.png import is_intact_png
from pipeline.build.fingerprint import Identities
from pipeline.stages.depth import pack, unpack
from pipeline.storage import StorageError, StoragePath, reason
from schemas.digest import BLANK, is_intact, with_digest

log = logging.getLogger(__name__)

UNIT_ERROR = 1e-3  # of the length of features, which CLIP computes in half precision on a GPU

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
        path = self._distance_path(image_id)
        content = _read(path)
        if content is None:
            return None
        try:
            intact = is_intact(content)
            if intact is False or (intact is None and not is_intact_png(content)):
                raise ValueError("it has changed")
            with Image.open(io.BytesIO(content)) as image:
                packed = np.asarray(image)
            if packed.ndim != 2 or not np.issubdtype(packed.dtype, np.integer):
                raise ValueError("it is no map")
            return unpack(packed.astype(np.uint16))
        except (OSError, SyntaxError, ValueError) as error:
            _report(path, error)
            return None

    def put_distance(self, image_id: str, distance: np.ndarray) -> np.ndarray:
        """Write a map; returns it as `distance` will read it."""
        packed = pack(distance)
        done, png = cv2.imencode(".png", packed, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert done, "OpenCV writes 16-bit grey PNG"
        # Decoders of PNG stop at its end, and do not read the digest that follows.
        self._write(self._distance_path(image_id), with_digest(png.tobytes() + BLANK))
        return unpack(packed)

    def patch_features(self, image_id: str, length: int) -> dict[str, np.ndarray]:
        """patch_id -> features, for the patches of a photograph whose features are cached.

        length: of the features of one patch, float32. Damaged files count as absent.
        """
        path = self._features_path(image_id)
        content = _read(path)
        if content is None:
            return {}
        try:
            intact = is_intact(content)
            if intact is False:
                raise ValueError("it has changed")
            features = safetensors.numpy.load(content)
            for feature in features.values():
                if feature.shape != (length,) or feature.dtype != np.float32:
                    raise ValueError(f"it holds no {length} float32 for each patch")
                # Without a digest, as before there were any, only their unit length can be checked.
                if intact is None and not abs(np.linalg.norm(feature) - 1) < UNIT_ERROR:
                    raise ValueError("its features are not of unit length")
        except (SafetensorError, ValueError, KeyError) as error:
            _report(path, error)
            return {}
        return features

    def put_features(self, image_id: str, features: dict[str, np.ndarray]) -> None:
        """Replace the cached features of a photograph's patches."""
        content = safetensors.numpy.save(features, {"digest": BLANK.decode()})
        self._write(self._features_path(image_id), with_digest(content))

    def _write(self, path: StoragePath, content: bytes) -> None:
        try:
            path.write_bytes(content)
        except StorageError:
            if not self._clear(path):
                raise
            path.write_bytes(content)

    def _clear(self, path: StoragePath) -> bool:
        """Rename what is no folder where one belongs, or a folder at `path`; whether there was."""
        if not path.is_local:
            return False
        inside = [p for p in path.path.parents if self.folder.path in p.parents]
        wrong = [p for p in reversed(inside) if p.exists() and not p.is_dir()]
        wrong += [path.path] if path.path.is_dir() else []
        for found in wrong:
            aside = move_aside(found, "aside")
            log.warning("%s: was in the way of the cache, and is now %s", found, aside.name)
        return bool(wrong)

    def _distance_path(self, image_id: str) -> StoragePath:
        return self.folder / "distance" / self.depth / image_id[:2] / f"{image_id}.png"

    def _features_path(self, image_id: str) -> StoragePath:
        return self.folder / "features" / self.features / image_id[:2] / f"{image_id}.safetensors"


def _read(path: StoragePath) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _report(path, error)
        return None


def _report(path: StoragePath, error: Exception) -> None:
    log.warning("%s: damaged (%s); computed again", path, reason(error))


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
