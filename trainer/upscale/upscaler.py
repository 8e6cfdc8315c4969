"""Upscale pictures from Python; found as `lasr.Upscaler`."""

from __future__ import annotations

import os
from typing import TypeVar

import numpy as np
from PIL import Image

from lasr.device import Device, pick_device
from lasr.weights.locate import locate
from trainer.upscale.config import OVERLAP, EngineName, Precision

Picture = TypeVar("Picture", np.ndarray, Image.Image)

_MODES = ("L", "LA", "RGB", "RGBA", "I;16")  # of images that keep their channels and depth


class Upscaler:
    """A super-resolution network that upscales pictures.

        upscale = lasr.Upscaler("realesrgan-x4plus")
        large = upscale(Image.open("photo.jpg"))

    Args:
        weights: a name of `lasr weights list`, a run's model.safetensors, or the file of any SR
            network that spandrel reads.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1 for the second one, or mps.
        tile, overlap: largest side of the tiles (default: 512, on a GPU 1024), and the pixels
            around one that the network sees; the memory needed grows with the tile, not with the
            picture.
        engine, precision: as in `lasr upscale`.

    Raises:
        UserError: weights that are missing or not those of an SR network.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        *,
        device: Device = "auto",
        tile: int | None = None,
        overlap: int = OVERLAP,
        engine: EngineName = "auto",
        precision: Precision = "auto",
    ):
        from trainer.models.load import load_model
        from trainer.upscale.engines import make_engine
        from trainer.upscale.tiles import Tiling

        model, where = load_model(locate(os.fspath(weights), "sr")), pick_device(device)
        self.scale = model.scale
        self._tiling = Tiling.on(where, tile, overlap)
        self._engine = make_engine(model.fitted(), where, engine, precision, model.half)

    def __call__(self, picture: Picture) -> Picture:
        """Upscale one picture; the result has the kind of `picture` and `scale` times its sides.

        picture: a PIL image, or an array of uint8 or uint16: h x w (grey) or h x w x c, with c = 1
        grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha. A PIL image of another mode than L, LA, RGB,
        RGBA and I;16 is converted to RGB or RGBA first.

        Raises:
            ValueError: an array of another shape or dtype.
            UserError: the network's output is not finite, or memory runs out.
        """
        if isinstance(picture, Image.Image):
            return Image.fromarray(self._upscale(np.asarray(_plain(picture))))
        return self._upscale(picture)

    def _upscale(self, pixels: np.ndarray) -> np.ndarray:
        from trainer.upscale.tiles import upscale_array

        planes = pixels[..., None] if pixels.ndim == 2 else pixels
        large = upscale_array(self._engine, planes, self.scale, self._tiling)
        return large[..., 0] if pixels.ndim == 2 else large


def _plain(image: Image.Image) -> Image.Image:
    """The image in a mode whose array has the channels that the network takes."""
    if image.mode in _MODES:
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
