"""What networks computed, kept by content: neither a new parameter nor a kill costs them twice.

    distance/<depth>/ab/<image_id>.png         a photograph's distance map, 16 bit, 65535 = far
    features/<clip>/ab/<image_id>.safetensors  CLIP's features of its patches, by patch_id

Everything here can be made again, so nothing is made durable: what a power failure cut short does
not decode and counts as absent. Builds may share such a folder (`--kept`).
"""

import io
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


@dataclass(frozen=True)
class Kept:
    """The kept maps and features of one depth estimator and one CLIP."""

    folder: StoragePath
    depth: str  # Identities.depth
    features: str  # Identities.features

    def distance(self, image_id: str) -> np.ndarray | None:
        """h x w float32 in 0..1 at the estimator's resolution, or None."""
        content = _read(self._distance_place(image_id))
        if content is None:
            return None
        try:
            with Image.open(io.BytesIO(content)) as image:
                return unpack(np.asarray(image).astype(np.uint16))
        except (OSError, SyntaxError, ValueError):
            return None

    def keep_distance(self, image_id: str, distance: np.ndarray) -> np.ndarray:
        """Write a map; returns it as `distance` will read it."""
        packed = pack(distance)
        done, png = cv2.imencode(".png", packed, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert done, "OpenCV writes 16-bit grey PNG"
        self._distance_place(image_id).write_bytes(png.tobytes())
        return unpack(packed)

    def patch_features(self, image_id: str) -> dict[str, np.ndarray]:
        """patch_id -> c float32, of the patches of a photograph whose features are known."""
        content = _read(self._features_place(image_id))
        try:
            return safetensors.numpy.load(content) if content else {}
        except SafetensorError:
            return {}

    def keep_features(self, image_id: str, features: dict[str, np.ndarray]) -> None:
        """Replace what is known of a photograph's patches."""
        self._features_place(image_id).write_bytes(safetensors.numpy.save(features))

    def _distance_place(self, image_id: str) -> StoragePath:
        return self.folder / "distance" / self.depth / image_id[:2] / f"{image_id}.png"

    def _features_place(self, image_id: str) -> StoragePath:
        return self.folder / "features" / self.features / image_id[:2] / f"{image_id}.safetensors"


def _read(place: StoragePath) -> bytes | None:
    try:
        return place.read_bytes()
    except OSError:
        return None


def tidy(folder: StoragePath, identities: Identities, image_ids: Collection[str]) -> None:
    """Remove what neither these models nor these photographs account for."""
    for kind, wanted in (("distance", identities.depth), ("features", identities.features)):
        for name in (folder / kind).names():
            if name != wanted:
                (folder / kind / name).remove()
        shelves = [folder / kind / wanted / name for name in (folder / kind / wanted).names()]
        with ThreadPoolExecutor(8) as executor:
            list(executor.map(lambda shelf: _tidy_shelf(shelf, image_ids), shelves))


def _tidy_shelf(shelf: StoragePath, image_ids: Collection[str]) -> None:
    for name in shelf.names():
        # A name that begins with a dot was being written when its build was killed.
        if name.startswith(".") or name.split(".")[0] not in image_ids:
            (shelf / name).remove()
