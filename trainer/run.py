"""Train a x4 super-resolution network on a manifest of far (LR) and near (HR) patches.

    python -m trainer.run --manifest data/patches.parquet
    python -m trainer.run --manifest data/subset.parquet --out data/runs/textured
    python -m trainer.run --manifest data/patches.parquet --profile offline --steps 100 --dry-run

Stopped or killed, the same command carries on from the last checkpoint.
"""

import sys
import time

from schemas.commandline import parse, run_command
from schemas.weights import untrained
from trainer.config import TrainConfig


def run(config: TrainConfig) -> None:
    """Train and print a summary."""
    from trainer import loop  # heavy imports after --help and flag errors

    started = time.monotonic()
    if names := untrained(config.sr_name, config.clip_name, config.vgg_name):
        print(f"UNTRAINED: {', '.join(names)}; shows the path, not the quality", file=sys.stderr)
    if config.dry_run:
        print(loop.describe(config))
        return
    weights = loop.train(config)
    print(f"weights: {weights} and {weights.with_suffix('.pth').name} (Real-ESRGAN's layout)")
    print(f"samples: {config.folder / 'samples'}")
    print(f"stats:   {config.folder / 'stats.jsonl'} (tensorboard --logdir {config.folder})")
    print(f"time:    {time.monotonic() - started:.0f} s")
    print(f"next:    python -m trainer.upscale --weights {weights} PICTURE --out data/upscaled")


def main(argv: list[str] | None = None) -> int:
    """The command `python -m trainer.run`."""
    config = parse(TrainConfig, argv, "python -m trainer.run", __doc__ or "")
    return run_command(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
