"""Upscale pictures with a trained network.

lasr upscale --weights data/runs/patches/model.safetensors photo.jpg --out upscaled
lasr upscale --weights realesrgan-x4plus folder/ --out upscaled --passes 2

Reads 8 and 16 bit, grey, palette, transparent and CMYK pictures, upright and in sRGB; copies EXIF,
XMP and resolution. A second call only does what is missing. Takes any weights that spandrel reads,
of any scale.
"""

import sys
from pathlib import Path

from lasr.cli import Command
from lasr.ownership import check_folder
from lasr.pictures.find import find_pictures
from lasr.pictures.search import expand_lists
from lasr.weights.locate import locate
from trainer.upscale.config import UpscaleConfig
from trainer.upscale.results import check_targets, result_paths


def run(config: UpscaleConfig) -> None:
    """Upscale every input. Raises UserError; see `trainer.upscale.run.upscale_files`."""
    inputs = list(expand_lists(config.inputs))
    check_folder(config.out, inputs, may_be_inside=True)
    found = find_pictures(config.inputs, exclude=config.out)
    results = result_paths(found, config.out, config.format)
    check_targets(results)
    check_folder(config.out, inputs, results.values(), may_be_inside=True)
    located = locate(config.weights, "sr")
    from trainer.upscale.run import upscale_files  # loads PyTorch, after the inputs are checked

    upscale_files(results, located, config)


def following(config: UpscaleConfig) -> list[object]:
    """The next command: this network beside bicubic, where the inputs are pictures or folders."""
    if not all(Path(path).exists() and not path.endswith(".txt") for path in config.inputs):
        return []
    methods = ["--weights", "bicubic", config.weights]
    return ["lasr", "evaluate", "--images", *config.inputs, *methods]


main = Command(
    UpscaleConfig, run, name="lasr upscale", about=__doc__, positional="inputs", weights=True,
    following=following,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
