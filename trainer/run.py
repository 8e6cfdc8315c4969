"""Train a x4 super-resolution network on a manifest of far (LR) and near (HR) patches.

    lasr train --manifest data/patches.parquet
    lasr train --manifest data/subset.parquet --out data/runs/textured
    lasr train --manifest data/patches.parquet --profile offline --steps 100 --dry-run
    lasr train --config data/runs/textured/config.json --out data/runs/again
    torchrun --nproc-per-node 4 -m trainer.run --manifest data/patches.parquet

If it is stopped or killed, the same command resumes it from the last checkpoint, also with another
number of processes: --batch-size counts the patches of all processes together, and the loss does
not depend on their number.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from lasr.cli import Command
from lasr.errors import UserError, one_line
from lasr.ownership import check_folder
from lasr.storage.config import address
from lasr.storage.manifest import open_manifest
from lasr.terminal.output import note, say
from lasr.terminal.summary import counted
from lasr.weights.locate import notes
from trainer.config import TrainConfig

RANK = int(os.environ.get("RANK", "0"))  # set by torchrun; rank 0 alone prints


def run(config: TrainConfig) -> None:
    """Train, and print a summary on rank 0."""
    if RANK:
        run_on_other_rank(config)
        return
    if "RANK" not in os.environ:  # other ranks learn of errors once all are connected
        check_folder(config.folder, [config.manifest])
        open_manifest(config.manifest, config=config)
    from trainer import checkpoint, loop, plan  # loads PyTorch, after the manifest is checked
    from trainer.data.skipped import NAME, read_skipped
    from trainer.distributed import world_from_environment

    started = time.monotonic()
    if "RANK" not in os.environ:
        checkpoint.check_folder(config.folder, config.inputs)
    for line in notes(*plan.weight_names(config)):
        note(line)
    if config.dry_run:
        from trainer.watch.cost import dry_run

        print(dry_run(config, world_from_environment().size))
        return
    weights = loop.train(config, main.line)
    say(f"weights: {', '.join(map(str, weights))} (.pth: Real-ESRGAN's layout)")
    say(f"samples: {config.folder / 'samples'}")
    if skipped := len(read_skipped(config.folder, config.steps)):
        rows = counted(skipped, "row")
        say(f"skipped: {rows} of the manifest, listed in {config.folder / NAME}")
    say(f"page:    {config.folder / 'run.html'}")
    say(f"stats:   {config.folder / 'stats.jsonl'} (tensorboard --logdir {config.folder})")
    print(f"time:    {time.monotonic() - started:.0f} s")


def run_on_other_rank(config: TrainConfig) -> None:
    """Run on a non-zero rank: train in silence. The first process that fails prints the error."""
    if config.dry_run:
        return
    logging.disable(logging.WARNING)
    try:
        from trainer import loop

        loop.train(config)
    except Exception as error:  # before the processes know each other
        raise UserError(f"rank {RANK}: {one_line(error)}") from error


def train(manifest: str | os.PathLike[str], **parameters: Any) -> list[Path]:
    """Train a x4 network on a manifest, or resume the run in its folder.

        weights = lasr.train(manifest="patches.parquet", profile="offline", steps=100)
        weights[0]  # data/runs/patches/model.safetensors

    The same as `lasr train`, in this process and on one device.

    Args:
        manifest: a folder of Parquet parts, or one Parquet file; also the address of one in
            object storage, such as `s3://bucket/patches.parquet`.
        parameters: any other parameter of `lasr train`, by its name with underscores.

    Returns:
        The files with the final weights, the .safetensors first.

    Raises:
        UserError: missing weights, a manifest that cannot be trained on, and everything else that
            `lasr train` answers with one line.
        pydantic.ValidationError: a parameter that is unknown or out of range.
    """
    config = TrainConfig(manifest=address(manifest), **parameters)
    from trainer import loop  # loads PyTorch

    return loop.train(config, "the call of lasr.train")


def following(config: TrainConfig) -> list[object]:
    """The next command: what the network does to far patches of the manifest."""
    sheet = config.folder / "compare.png"
    paths = ["--manifest", config.manifest, "--weights", config.folder, "--out", sheet]
    return ["lasr", "compare", *paths]


main = Command(
    TrainConfig, run, name="lasr train", about=__doc__, weights=True, configurable=True,
    following=following,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
