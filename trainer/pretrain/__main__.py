"""Train a PSNR-oriented x4 network on photographs, to start `lasr train` from.

    lasr pretrain --images ~/photos --out data/runs/start
    lasr pretrain --images ~/photos --out data/runs/small --features 32 --blocks 4 --growth 16
    lasr train --manifest data/patches.parquet --sr-init data/runs/start/model_ema.safetensors

Pairs are made from the photographs: LR patches by MATLAB's antialiased bicubic. The loss is L1. If
it is stopped or killed, the same command resumes it from the last checkpoint.
"""

import os
import sys
import time

from lasr.cli import Command
from lasr.ownership import check_folder
from lasr.pictures.find import find_pictures
from lasr.terminal.output import say
from trainer.pretrain.config import PretrainConfig


def run(config: PretrainConfig) -> None:
    """Train, and print a summary."""
    check_folder(config.folder, config.inputs)
    found = find_pictures(config.images, config.folder)
    from trainer.pretrain import loop  # loads PyTorch, after the paths are checked

    loop.refuse_several_processes(os.environ.get("WORLD_SIZE", ""))
    if config.dry_run:
        print(loop.describe(config, found))
        return
    started = time.monotonic()
    result = loop.pretrain(config, main.line, found)
    say(f"weights: {', '.join(map(str, result.weights))} (.pth: Real-ESRGAN's layout)")
    for name, value in result.psnr.items():
        bicubic = result.bicubic[name.removeprefix("psnr_y_")]
        say(f"PSNR-Y:  {name.removeprefix('psnr_y_')} {value:.2f} dB, bicubic {bicubic:.2f} dB")
    say(f"stats:   {config.folder / 'stats.jsonl'} (tensorboard --logdir {config.folder})")
    print(f"time:    {time.monotonic() - started:.0f} s")


def following(config: PretrainConfig) -> list[object]:
    """The next command: training from these weights."""
    weights = config.folder / f"model{'_ema' if config.ema else ''}.safetensors"
    return ["lasr", "train", "--manifest", "data/patches.parquet", "--sr-init", weights]


main = Command(
    PretrainConfig, run, name="lasr pretrain", about=__doc__, weights=True, configurable=True,
    following=following,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
