"""The pictures of a report: photographs with their distance maps, and patches, as `data:` URIs."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import matplotlib
import numpy as np
from PIL import Image

from pipeline.artifacts import Row
from pipeline.originals import Missing, Originals
from pipeline.picture import DISTANCE_COLOURS
from schemas.manifest import PATCH_SIZE

PHOTOGRAPH = 1200  # pixels of the longer side that are kept; `Detail` says how many are shown
_PAPER = (128, 128, 128)  # of a photograph that is not here


@dataclass(frozen=True)
class Detail:
    """How finely pictures are written, the first try and the next ones, until the page fits."""

    side: int  # pixels of a photograph's longer side
    quality: int  # of WebP
    share: float = 1.0  # of the sampled photographs and pairs that are shown


DETAILS = (
    Detail(PHOTOGRAPH, 84),
    Detail(800, 78),
    Detail(640, 70),
    Detail(480, 60),
    *(Detail(480, 60, 0.75**i) for i in range(1, 16)),
)


@dataclass(frozen=True)
class Sheet:
    """A photograph of the gallery."""

    path: str
    width: int
    height: int
    patches: list[Row]
    photograph: Image.Image
    distance: Image.Image | None
    missing: list[str] = field(default_factory=list)  # what cannot be shown, and why

    @property
    def is_here(self) -> bool:
        """Whether the photograph itself is shown, not only its patches."""
        return not any("photograph" in why for why in self.missing)


def sheet(photograph: Row, patches: Sequence[Row], originals: Originals) -> Sheet:
    """Read a photograph and its distance map, each once; without them show its patches in place.

    patches: with their pixels (`png`) and the depth_model.
    """
    names = photograph["path"], photograph["width"], photograph["height"], list(patches)
    try:
        pixels = originals.pixels(photograph["path"], photograph["image_id"])
    except Missing as why:
        return Sheet(*names, _patches_in_place(photograph, patches), None, [str(why)])
    shown = _smaller(Image.fromarray(pixels), PHOTOGRAPH)
    try:
        distance = originals.distance(photograph["image_id"], patches[0]["depth_model"], pixels)
    except Missing as why:
        return Sheet(*names, shown, None, [str(why)])
    colours = matplotlib.colormaps[DISTANCE_COLOURS]
    small = np.asarray(_smaller(Image.fromarray(distance), PHOTOGRAPH // 2))
    return Sheet(*names, shown, Image.fromarray(colours(small, bytes=True)[..., :3]))


def _patches_in_place(photograph: Row, patches: Sequence[Row]) -> Image.Image:
    scale = min(1.0, PHOTOGRAPH / max(photograph["width"], photograph["height"]))
    size = (round(photograph["width"] * scale), round(photograph["height"] * scale))
    canvas = Image.new("RGB", size, _PAPER)
    for patch in sorted(patches, key=lambda patch: -patch["size"]):
        side = max(1, round(patch["size"] * scale))
        tile = patch_picture(patch).resize((side, side), Image.Resampling.BOX)
        canvas.paste(tile, (round(patch["x"] * scale), round(patch["y"] * scale)))
    return canvas


def patch_picture(patch: Row) -> Image.Image:
    """The pixels of a patch."""
    with Image.open(io.BytesIO(patch["png"])) as image:
        return image.convert("RGB")


def middle(picture: Image.Image) -> Image.Image:
    """As many pixels from the middle of a near patch as a far one has: the same enlargement."""
    side = PATCH_SIZE["lr"]
    left, top = ((length - side) // 2 for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


def _smaller(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image, detail: Detail, kind: Literal["photograph", "pixels"]) -> str:
    """A picture as WebP; kind: `pixels` loses none of them, as they are looked at enlarged."""
    with io.BytesIO() as buffer:
        if kind == "pixels":
            picture.save(buffer, "WEBP", lossless=True, quality=60)
        else:
            _smaller(picture.copy(), detail.side).save(buffer, "WEBP", quality=detail.quality)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
