"""Draw one photograph of a manifest: its distance map, its far and near patches, their captions.

lasr picture --images ~/photos --photograph a.jpg --out overview.png
"""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from lasr.cli import Command
from lasr.device import Device
from lasr.errors import UserError
from lasr.marks import in_picture
from lasr.ownership import check_file, own_path
from lasr.pictures.search import expand_lists
from lasr.terminal.output import say
from pipeline.report.config import COLOURS
from pipeline.steps.drawing import COLOUR_MAP, in_colour, outlined
from schemas.manifest import open_manifest

TITLES: dict[str, str] = {"lr": "far: LR patches, enlarged", "hr": "near: HR patches"}
SHOWN = 4  # patches of each role, best first
CAPTION_WORDS = 5
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WebP"}


class PictureConfig(BaseModel):
    """The parameters of `lasr picture`."""

    images: list[str] = Field(min_length=1, description="the photographs of the build")
    manifest: Path = Field(Path("data/patches.parquet"), description="the manifest to draw from")
    out: Path = Field(
        Path("data/overview.png"), description="the picture to write: .png, .jpg or .webp"
    )
    photograph: str | None = Field(
        None, description="image_path of the photograph (default: the one with the most patches)"
    )
    device: Device = Field("auto", description="where the depth estimator runs")


def draw(config: PictureConfig) -> str:
    """Write the picture and return the name of the photograph. Raises UserError."""
    if config.out.suffix.lower() not in FORMATS:
        raise UserError(
            f"--out {config.out}: not a name of a picture",
            f"use one that ends in {', '.join(FORMATS)}",
        )
    check_file(config.out, [config.manifest, *expand_lists(config.images)])
    manifest = open_manifest(config.manifest)
    # After the manifest is checked: the first loads pandas, the last PyTorch.
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    from pipeline.report.originals import Missing, Originals

    table = ds.dataset([str(file) for file in manifest.files]).to_table(
        filter=pc.field("image_path") == config.photograph if config.photograph else None,
        columns=[name for name in manifest.schema.names if name != "image"],
    )
    rows = table.sort_by([("image_path", "ascending"), ("rank", "ascending")]).to_pylist()
    if not rows:
        raise UserError(
            f"{config.manifest}: no photograph '{config.photograph}'",
            "give an image_path of the manifest",
        )
    names = [row["image_path"] for row in rows]
    name = config.photograph or max(sorted(set(names)), key=names.count)
    own = [row for row in rows if row["image_path"] == name]
    originals = Originals(manifest, config.images, config.device)
    if name not in originals.found:
        raise UserError(f"--images: '{name}' is not in these paths", "give those of the build")
    try:
        pixels = originals.pixels(name, own[0]["image_id"])
        distance = originals.distance(own[0]["image_id"], own[0]["depth_model"], pixels)
    except Missing as why:
        raise UserError(f"{name}: {why}") from why
    _draw(config.out, pixels, distance, own, bool(originals.parameters.get("untrained")))
    return name


def _draw(
    out: Path, pixels: np.ndarray, distance: np.ndarray, rows: list[dict[str, Any]], untrained: bool
) -> None:
    """Photograph and map above, the best patches of both roles below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8.8), dpi=100, layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=[1.55, 1])
    top, bottom = panels
    photo, far_map = top.subplots(1, 2)
    photo.imshow(outlined(pixels, rows))
    photo.set_title(f"{rows[0]['image_path']}: chosen patches (yellow far, blue near)")
    far_map.imshow(outlined(in_colour(distance), rows))
    far_map.set_title(f"distance, {rows[0]['depth_model']}")
    bar = top.colorbar(ScalarMappable(cmap=COLOUR_MAP), ax=far_map, shrink=0.8, ticks=[0, 1])
    bar.ax.set_yticklabels(["near", "far"])
    for axes in (photo, far_map):
        axes.set_axis_off()
    note = " (random CLIP: words are noise)" if untrained else ""
    bottom.suptitle(f"best patches and the first words of their captions{note}")
    halves: Any = bottom.subfigures(1, 2)
    for part, role in zip(halves, ("lr", "hr"), strict=True):
        best = [row for row in rows if row["role"] == role][:SHOWN]
        part.supylabel(TITLES[role], color=COLOURS[role], fontweight="bold")
        for axes, row in zip(np.atleast_1d(part.subplots(1, SHOWN)), best, strict=False):
            side, x, y = row["size"], row["x"], row["y"]
            axes.imshow(pixels[y : y + side, x : x + side], interpolation="nearest")
            axes.set_xlabel("\n".join(row["words"][:CAPTION_WORDS]), fontsize=9)
            axes.set_title(f"distance {row['distance']:.2f}", fontsize=9)
        for axes in part.axes:
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=COLOURS[role], linewidth=2)
                spine.set_visible(bool(axes.images))
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png")
        with Image.open(buffer) as drawn, own_path(out) as temporary:
            form = FORMATS[out.suffix.lower()]
            drawn.convert("RGB").save(temporary, format=form, quality=85, **in_picture())


def run(config: PictureConfig) -> None:
    """Write the picture and print its name. Raises UserError."""
    name = draw(config)
    say(f"{name}: {config.out}")


main = Command(PictureConfig, run, name="lasr picture", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
