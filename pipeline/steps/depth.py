"""Distance maps of pictures, as a build computes them: 0 is near, 1 is far.

    lasr depth photo.jpg folder/ --out maps
    lasr depth "scans/*.tif" --out maps --depth depth-anything-v2-large

NAME.distance.png holds the map at the picture's size in 16 bit, 0 (nearest) to 65535 (farthest) of
this picture; distances of two pictures cannot be compared. NAME.colour.png shows it, dark near and
bright far. A second call only does what is missing.
"""

import sys
from functools import cache
from pathlib import Path

from pydantic import Field

from lasr.cli import Command
from lasr.device import pick_device
from lasr.pictures.write import save_picture, software_tag
from lasr.terminal.output import say
from lasr.weights.locate import locate
from pipeline.build.fingerprint import fingerprint
from pipeline.build.plan import resolved_precision
from pipeline.stages import depth
from pipeline.stages.depth import DepthConfig, DepthModel, load_depth, pack, with_family
from pipeline.stages.images import Photograph, Unusable
from pipeline.steps.config import StepConfig
from pipeline.steps.drawing import in_colour
from pipeline.steps.photographs import find_with_results, for_each


class DepthMapsConfig(DepthConfig, StepConfig):
    """The flags of `lasr depth`."""

    out: Path = Field(description="folder for the maps; subfolders of the inputs are kept")
    seed: int = Field(0, ge=0, description="of the noise that DepthFM draws")
    overwrite: bool = Field(False, description="replace maps that exist already")


def write_maps(config: DepthMapsConfig) -> None:
    """Write the maps, and print how many were made.

    The estimator is loaded when the first map is missing. Raises UserError; at the end, naming
    pictures that failed.
    """
    results = find_with_results(config, config.out, [(".distance", "png"), (".colour", "png")])
    build = config.build
    located = with_family(locate(build.depth_name, "depth"))
    precision = resolved_precision(build)
    version = fingerprint(*depth.fingerprint_inputs(located, config.seed, precision))[:8]
    existing = 0

    @cache
    def model() -> DepthModel:
        return load_depth(located, pick_device(config.device), config.seed, precision)

    def write(photograph: Photograph) -> None:
        nonlocal existing
        paths = results[photograph.found]
        software = f"LA-SR distance by {located.identity} {version} of {photograph.image_id[:12]}"
        if not config.overwrite and is_done(paths, software):
            existing += 1
            return
        distance = model().distance(photograph.pixels)
        pictures = pack(distance)[..., None], in_colour(distance)
        for path, pixels in zip(paths, pictures, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(path, [pixels], pixels.shape, pixels.dtype, software)

    failures = for_each(list(results), config, 1, write)
    made = len(results) - len(failures.reasons) - existing
    more = f", {existing} existed already" if existing else ""
    say(f"maps: {made} of {len(results)}{more}, in {config.out}")
    failures.report()


def is_done(paths: list[Path], software: str) -> bool:
    """Whether both files exist with this tag. Raises Unusable: with another one."""
    tags = [software_tag(path) if path.exists() else None for path in paths]
    for path, tag in zip(paths, tags, strict=True):
        if path.exists() and tag != software:
            why = f"{path} exists already, from another estimator or picture"
            raise Unusable("failed", f"{why}; choose another --out, or add --overwrite")
    return None not in tags


main = Command(
    DepthMapsConfig,
    write_maps,
    name="lasr depth",
    about=__doc__,
    positional="pictures",
    weights=True,
)

if __name__ == "__main__":
    sys.exit(main())
