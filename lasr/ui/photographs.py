"""Far and near patches of a dropped photograph: the stages of a build, one after the other."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from lasr.errors import UserError
from lasr.ui.jobs import Answer, Job
from lasr.ui.previews import as_uri, in_magma, write_preview
from lasr.ui.uploads import Store
from lasr.weights.locate import found, locate
from lasr.weights.registry import TABLE
from schemas.manifest import PATCH_SIZE

if TYPE_CHECKING:
    from lasr.device import Device
    from pipeline.stages.depth import DepthModel

KEPT = 3  # photographs in memory, with their distance maps
MOST = 64  # patches of a role
FIELDS = ("k", "min_separation", "min_texture", "far_texture")


@dataclass(frozen=True)
class _Opened:
    image_id: str
    pixels: np.ndarray  # H x W x 3 uint8
    distance: np.ndarray  # H x W float32 in 0..1, not yet filtered


class Viewer:
    """Computes a distance map once for each photograph; then only selects."""

    def __init__(self, store: Store, device: "Device", max_pixels: int):
        self._store, self._device, self._max_pixels = store, device, max_pixels
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()
        self._model: tuple[str, DepthModel] | None = None

    def estimators(self) -> list[str]:
        """Depth estimators that are on this machine, the one of the profile `offline` first."""
        entries = [w for w in TABLE.values() if w.kind == "depth"]
        entries = [w for w in entries if find_spec(f"pipeline.stages.{w.family}")]
        here = [w.name for w in entries if w.built_in or found(w)]
        return sorted(here, key=lambda name: name != "scene-layout")

    def open(self, job: Job, source: Path, depth: str) -> Answer:
        """Read FOLDER/in/NAME of the store and compute its distance map. Raises UserError."""
        from pipeline.inputs.photographs import Found
        from pipeline.stages import images
        from pipeline.stages.select import box_mean
        from pipeline.storage import StoragePath

        if depth not in self.estimators():
            raise UserError(f"'{depth}': no such estimator here", "choose another one")
        size = source.stat().st_size
        file = Found(source.name, StoragePath(str(source)), size, 0)
        try:
            photograph = images.load(file, PATCH_SIZE["hr"], self._max_pixels)
        except images.Unusable as why:
            raise UserError(f"{source.name}: {why.reason}", "choose another photograph") from why
        job.progress(0.2)
        distance = self._estimator(depth).distance(photograph.pixels)
        job.progress(0.8)
        folder, pixels = source.parent.parent, photograph.pixels
        with self._lock:
            self._opened[folder.name] = _Opened(photograph.image_id, pixels, distance)
            while len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        map_ = write_preview(in_magma(box_mean(distance)), folder, "distance")
        return {
            "photograph": folder.name,
            "name": source.name,
            "picture": self._store.offer(write_preview(pixels, folder, "photograph")),
            "distance": self._store.offer(map_),
            "size": [pixels.shape[1], pixels.shape[0]],
        }

    def patches(self, asked: dict[str, Any]) -> Answer:
        """Select as a build with these parameters would. Raises UserError."""
        from pipeline.stages.select import SelectConfig, select

        opened = self._opened.get(str(asked.get("photograph")))
        if opened is None:
            raise UserError("this photograph is not kept any more", "drop it again")
        try:
            config = SelectConfig(**{name: asked.get(name) for name in FIELDS})
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{first['loc'][0]}: {first['msg']}", "choose another value") from error
        if config.k > MOST:
            raise UserError(f"k: over {MOST}", "choose another value")
        selected = select(opened.pixels, opened.distance, opened.image_id, config)
        return {
            "patches": [
                {
                    "role": p.role, "x": p.x, "y": p.y, "size": p.size, "rank": p.rank,
                    "distance": round(p.distance, 3), "texture": round(p.texture, 4),
                    "pixels": as_uri(opened.pixels[p.y : p.y + p.size, p.x : p.x + p.size]),
                }
                for p in selected
            ]
        }  # fmt: skip

    def _estimator(self, name: str) -> "DepthModel":
        from lasr.device import pick_device
        from pipeline.stages.depth import load_depth

        if self._model is None or self._model[0] != name:
            self._model = None  # its memory goes first
            self._model = name, load_depth(locate(name, "depth"), pick_device(self._device))
        return self._model[1]
