"""Draw LR patches beside degraded copies, to see what `--degrade realesrgan` does (table 5).

    lasr degradations --manifest data/patches.parquet --out data/degraded.png

The degradation model itself is in trainer/data/realesrgan.py.
"""

import sys
from pathlib import Path

import numpy as np
from pydantic import Field

from lasr.cli import Command
from lasr.ownership import check_file
from lasr.storage.config import ManifestAddress, StorageConfig
from lasr.storage.manifest import open_manifest
from lasr.terminal.output import say
from lasr.terminal.summary import counted

SCALE = 3  # side of an LR pixel on the sheet


class SheetConfig(StorageConfig):
    """What `lasr degradations` takes."""

    manifest: ManifestAddress = Field(
        Path("data/patches.parquet"), description="manifest with LR patches"
    )
    out: Path = Field(Path("data/degraded.png"), description="the sheet to write")
    patches: int = Field(8, ge=1, le=1000, description="LR patches, one per row")
    draws: int = Field(8, ge=1, le=100, description="degraded copies of each patch, side by side")
    seed: int = Field(0, ge=0, description="seed of the choice of patches and of degradations")


def draw_sheet(config: SheetConfig) -> None:
    """Write LR patches and degraded copies of each, all enlarged. Raises UserError."""
    check_file(config.out, [config.manifest])
    open_manifest(config.manifest, (), config)  # a wrong path is reported before PyTorch loads
    import torch

    from trainer.data.dataset import COLUMNS, Patches
    from trainer.data.realesrgan import degrade
    from trainer.sheets import nearest, write_sheet

    patches_of = Patches(open_manifest(config.manifest, COLUMNS, config))
    rng = np.random.default_rng(config.seed)
    patches = patches_of.pixels("lr", rng.permutation(patches_of.rows["lr"])[: config.patches])
    columns = {"LR": patches}
    for number in range(1, config.draws + 1):
        columns[f"degraded {number}"] = [degrade(pixels, rng) for pixels in patches]
    write_sheet(
        config.out,
        {
            title: nearest(torch.from_numpy(np.stack(column)).permute(0, 3, 1, 2) / 255, SCALE)
            for title, column in columns.items()
        },
    )


def run(config: SheetConfig) -> None:
    """Draw the sheet and print its path."""
    draw_sheet(config)
    copies = counted(config.draws, "degraded copy")
    say(f"{counted(config.patches, 'patch')}, {copies} each: {config.out}")


main = Command(
    SheetConfig, run, name="lasr degradations", about=__doc__,
    following=lambda config: [
        "lasr", "train", "--manifest", config.manifest, "--degrade", "realesrgan",
    ],
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
