"""Draw the far and near patches into pictures that a build would choose.

    lasr patches photo.jpg --out drawn
    lasr patches folder/ --out drawn --k 4 --strategy random --profile offline

NAME.patches.jpg is the picture with its far patches (LR) outlined in yellow, its near ones (HR) in
blue. `lasr picture` draws a photograph of a manifest, with its distance map and captions.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from lasr.cli import Command
from lasr.device import pick_device
from lasr.flags import Sections
from lasr.marks import SOFTWARE
from lasr.pictures.write import save_picture
from lasr.terminal.output import say
from lasr.weights.locate import Located, locate
from pipeline.build.plan import resolved_precision
from pipeline.config import BuildConfig
from pipeline.stages.depth import DepthConfig, DepthModel, load_depth, with_family
from pipeline.stages.images import Photograph, Unusable
from pipeline.stages.rows import catalogue_row
from pipeline.stages.select import Patch, SelectConfig, select
from pipeline.steps.config import StepConfig
from pipeline.steps.drawing import outlined
from pipeline.steps.photographs import find_with_results, for_each
from schemas.manifest import PATCH_SIZE


class PatchesConfig(SelectConfig, DepthConfig, StepConfig):
    """The flags of `lasr patches`."""

    SECTIONS: ClassVar[Sections] = {
        "Choice of patches": ("min_separation", "min_texture", "far_texture"),
        "Execution": ("precision", "max_pixels"),
    }

    out: Path = Field(description="folder for the pictures; subfolders of the inputs are kept")


def chooser(build: BuildConfig) -> Callable[[Photograph], list[Patch]]:
    """A function that chooses the patches of a photograph as this build does.

    The estimator is located now, and loaded for the first photograph. Raises WeightsError.
    """
    located: Located = with_family(locate(build.depth_name, "depth"))
    precision = resolved_precision(build)
    models: list[DepthModel] = []

    def choose(photograph: Photograph) -> list[Patch]:
        if not models:
            models.append(load_depth(located, pick_device(build.device), build.seed, precision))
        distance = models[0].distance(photograph.pixels)
        patches = select(photograph.pixels, distance, photograph.image_id, build)
        if not patches:
            raise Unusable("no_patches", catalogue_row(photograph, patches)["error"])
        return patches

    return choose


def draw(config: PatchesConfig) -> None:
    """Write the pictures, and print how many patches they show.

    Raises UserError; at the end, naming pictures that failed.
    """
    results = find_with_results(config, config.out, [(".patches", "jpg")])
    choose, counts = chooser(config.build), Counter[str]()

    def write(photograph: Photograph) -> None:
        patches = choose(photograph)
        drawn = outlined(photograph.pixels, map(vars, patches))
        (path,) = results[photograph.found]
        save_picture(path, [drawn], drawn.shape, drawn.dtype, SOFTWARE)
        counts.update(patch.role for patch in patches)

    failures = for_each(list(results), config, PATCH_SIZE["hr"], write)
    say(f"patches: {counts['lr']} lr (yellow), {counts['hr']} hr (blue), in {config.out}")
    failures.report()


main = Command(
    PatchesConfig, draw, name="lasr patches", about=__doc__, positional="pictures", weights=True
)

if __name__ == "__main__":
    sys.exit(main())
