"""The pictures of the page: photographs with their distance maps, and patches, as `data:` URIs."""

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pipeline.report.originals import Missing, Originals
from pipeline.report.overview import Row, patch_or_cross
from pipeline.steps.drawing import in_colour
from schemas.manifest import PATCH_SIZE, Role

PHOTOGRAPH = 1200  # pixels of the longer side of a photograph in memory; see also Detail
_BACKGROUND = (128, 128, 128)  # of a photograph that is not here


@dataclass(frozen=True)
class Detail:
    """Resolution and number of the pictures."""

    side: int  # pixels of a photograph's longer side
    quality: int  # of WebP
    share: float = 1.0  # of the sampled photographs and pairs that are shown


# Tried in this order until the page is small enough.
DETAILS = (
    Detail(PHOTOGRAPH, 84),
    Detail(800, 78),
    Detail(640, 70),
    Detail(480, 60),
    *(Detail(480, 60, 0.5**i) for i in range(1, 8)),
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
    missing: list[str] = field(default_factory=list)  # why something is not shown

    @property
    def is_here(self) -> bool:
        """Whether the photograph is shown, and not only its patches."""
        return not any("photograph" in why for why in self.missing)


def sheet(photograph: Row, patches: Sequence[Row], originals: Originals) -> Sheet:
    """Read a photograph and its distance map. Without the photograph show its patches alone.

    patches: those of the photograph, with their pixels (`png`) and the depth_model.
    """
    names = photograph["path"], photograph["width"], photograph["height"], list(patches)
    try:
        pixels = originals.pixels(photograph["path"], photograph["image_id"])
    except Missing as why:
        return Sheet(*names, _patches_alone(photograph, patches), None, [str(why)])
    shown = _smaller(Image.fromarray(pixels), PHOTOGRAPH)
    try:
        distance = originals.distance(photograph["image_id"], patches[0]["depth_model"], pixels)
    except Missing as why:
        return Sheet(*names, shown, None, [str(why)])
    small = np.asarray(_smaller(Image.fromarray(distance), PHOTOGRAPH // 2))
    return Sheet(*names, shown, Image.fromarray(in_colour(small)))


def _patches_alone(photograph: Row, patches: Sequence[Row]) -> Image.Image:
    """The patches at their positions in the photograph, on grey."""
    scale = min(1.0, PHOTOGRAPH / max(photograph["width"], photograph["height"]))
    size = (round(photograph["width"] * scale), round(photograph["height"] * scale))
    canvas = Image.new("RGB", size, _BACKGROUND)
    for patch in sorted(patches, key=lambda patch: -patch["size"]):
        side = max(1, round(patch["size"] * scale))
        tile = patch_picture(patch).resize((side, side), Image.Resampling.BOX)
        canvas.paste(tile, (round(patch["x"] * scale), round(patch["y"] * scale)))
    return canvas


def patch_picture(patch: Row) -> Image.Image:
    """Decode a patch; one that cannot be decoded is a cross on grey, of the patch's size."""
    return patch_or_cross(patch["png"], PATCH_SIZE[patch["role"]])


@functools.lru_cache(maxsize=1024)  # slow to write, and independent of the detail
def pixels_uri(png: bytes | None, role: Role) -> str:
    """The middle of a patch, as large as a far patch, without loss.

    A far and a near patch side by side thus have the same enlargement.
    """
    picture = patch_or_cross(png, PATCH_SIZE[role])
    side = PATCH_SIZE["lr"]
    left, top = ((length - side) // 2 for length in picture.size)
    middle = picture.crop((left, top, left + side, top + side))
    return _uri(middle, lossless=True, quality=60)


def photograph_uri(picture: Image.Image, detail: Detail) -> str:
    """A photograph, a distance map or a near patch, in the resolution of `detail`."""
    return _uri(_smaller(picture.copy(), detail.side), quality=detail.quality)


def _uri(picture: Image.Image, **options: Any) -> str:
    with io.BytesIO() as buffer:
        picture.save(buffer, "WEBP", **options)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _smaller(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
