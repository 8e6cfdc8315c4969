"""Upscale pictures with a trained network.

lasr upscale --weights data/runs/patches/model.safetensors photo.jpg --out upscaled
lasr upscale --weights realesrgan-x4plus -i folder/ -o upscaled --size 3840x2160 --suffix _4k
lasr upscale --weights realesrgan-x4plus folder/ --out upscaled --passes 2

The network enlarges once or several times, and a Lanczos filter takes its output to --scale or
--size. Reads 8 and 16 bit, grey, palette, transparent and CMYK pictures, upright and in sRGB;
copies EXIF, XMP and resolution. A second call only does what is missing. Takes any weights that
spandrel reads, of any scale.
"""

import sys

from lasr.cli import Command
from lasr.ownership import check_folder
from lasr.pictures.find import find_pictures
from lasr.pictures.search import expand_lists
from lasr.pictures.write import result_paths
from lasr.terminal.output import say
from lasr.weights.locate import locate
from trainer.upscale.config import UpscaleConfig
from trainer.upscale.results import check_targets


def run(config: UpscaleConfig) -> None:
    """Upscale every input. Raises UserError; see `trainer.upscale.run.upscale_files`."""
    inputs = list(expand_lists(config.inputs))
    check_folder(config.out, inputs, may_be_inside=True)
    found = find_pictures(config.inputs, exclude=config.out)
    results = result_paths(found, config.out, config.format, config.suffix or "")
    check_targets(results)
    check_folder(config.out, inputs, results.values(), may_be_inside=True)
    located = locate(config.weights, "sr")
    from trainer.upscale.run import upscale_files  # loads PyTorch, after the inputs are checked

    if config.dry_run:
        from trainer.upscale.dry_run import dry_run

        for line in dry_run(results, located, config):
            say(line)
    else:
        upscale_files(results, located, config)


main = Command(
    UpscaleConfig, run, name="lasr upscale", about=__doc__, positional="inputs", weights=True
)

if __name__ == "__main__":
    sys.exit(main())
