"""Train a x4 super-resolution network on a manifest of far (LR) and near (HR) patches.

    python -m trainer.run --manifest data/patches.parquet
    python -m trainer.run --manifest data/subset.parquet --out data/runs/textured
    python -m trainer.run --manifest data/patches.parquet --profile offline --steps 100 --dry-run
    torchrun --nproc-per-node 4 -m trainer.run --manifest data/patches.parquet

Stopped or killed, the same command carries on from the last checkpoint, also with another number of
processes: --batch-size is that of all together, and the loss does not depend on how many they are.
"""

import contextlib
import logging
import os
import shlex
import sys
import time

from lasr.cli import parse, run_command
from lasr.weights.locate import untrained
from trainer.config import TrainConfig

SPEAKS = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, one talks


def run(config: TrainConfig, command: str) -> None:
    """Train and print a summary."""
    from trainer import loop  # heavy imports after --help and flag errors
    from trainer import plan as check
    from trainer.distributed import launched

    started = time.monotonic()
    if names := untrained(config.sr_name, config.clip_name, config.vgg_name):
        print(f"UNTRAINED: {', '.join(names)}; shows the path, not the quality", file=sys.stderr)
    if config.dry_run:
        print(check.describe(config, launched().size))
        return
    weights = loop.train(config, command)
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


def main(argv: list[str] | None = None) -> int:
    """The command `python -m trainer.run`."""
    said = sys.argv[1:] if argv is None else argv
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as silence:
        if not SPEAKS:
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        config = parse(TrainConfig, said, "python -m trainer.run", __doc__ or "", weights=True)
    if not SPEAKS:
        return run_command(lambda: run_silently(config))
    return run_command(lambda: run(config, shlex.join(["python", "-m", "trainer.run", *said])))


if __name__ == "__main__":
    sys.exit(main())
