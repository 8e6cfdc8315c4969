"""Train a x4 super-resolution network on a manifest of far (LR) and near (HR) patches.

    python -m trainer.run --manifest data/patches.parquet
    python -m trainer.run --manifest data/subset.parquet --out data/runs/textured
    python -m trainer.run --manifest data/patches.parquet --profile offline --steps 100 --dry-run
    torchrun --nproc-per-node 4 -m trainer.run --manifest data/patches.parquet

Stopped or killed, the same command carries on from the last checkpoint, also with another number of
processes: --batch-size is that of all together, and the loss does not depend on how many they are.
"""

import logging
import os
import sys
import time

from lasr.cli import Command
from lasr.weights.locate import untrained
from trainer.config import TrainConfig

SPEAKS = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, one talks


def run(config: TrainConfig) -> None:
    """Train and print a summary."""
    from trainer import loop  # heavy imports after --help and flag errors
    from trainer import plan as check
    from trainer.distributed import launched

    if not SPEAKS:
        run_silently(config)
        return
    started = time.monotonic()
    if names := untrained(config.sr_name, config.clip_name, config.vgg_name):
        print(f"UNTRAINED: {', '.join(names)}; shows the path, not the quality", file=sys.stderr)
    if config.dry_run:
        print(check.describe(config, launched().size))
        return
    weights = loop.train(config, main.line)
    print(f"weights: {', '.join(map(str, weights))} (.pth: Real-ESRGAN's layout)")
    print(f"samples: {config.folder / 'samples'}")
    print(f"stats:   {config.folder / 'stats.jsonl'} (tensorboard --logdir {config.folder})")
    print(f"time:    {time.monotonic() - started:.0f} s")
    print(f"next:    python -m trainer.upscale --weights {weights[0]} PICTURE --out data/upscaled")


def run_silently(config: TrainConfig) -> None:
    """The part of a process that does not speak. Raises OwnError, which nobody else can tell."""
    from lasr.errors import UserError
    from trainer import loop
    from trainer.distributed import OwnError

    logging.disable(logging.WARNING)
    try:
        if not config.dry_run:
            loop.train(config)
    except OwnError:
        raise
    except (UserError, KeyboardInterrupt) as error:  # the first process says the same
        raise SystemExit(1 if isinstance(error, UserError) else 130) from None


main = Command(TrainConfig, run, name="lasr train", about=__doc__, weights=True)

if __name__ == "__main__":
    sys.exit(main())
