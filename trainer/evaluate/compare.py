"""Draw far patches of a manifest beside their enlargements by several networks.

    lasr compare --weights start=rrdb-psnr-x4 data/runs/patches
    lasr compare --manifest data/held-out.parquet --weights realesrgan-x4plus mine=run/model.pth

No reference exists for a far patch, so there is no score: look. The patches are those with the
most texture, one of each photograph. Each column is 4 times as large as the patch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import Field

from lasr.cli import Command, progress
from lasr.device import Device, pick_device
from lasr.errors import UserError
from lasr.ownership import check_file
from lasr.storage.config import ManifestAddress, StorageConfig
from lasr.storage.manifest import open_manifest
from lasr.terminal.output import say
from lasr.terminal.summary import counted
from schemas.manifest import SCALE, Manifest
from trainer.data.index import opened, read_footer
from trainer.evaluate.methods import BICUBIC, Method, locate_weights, parse_methods

if TYPE_CHECKING:
    import torch


class CompareConfig(StorageConfig):
    """The flags of `lasr compare`."""

    manifest: ManifestAddress = Field(
        Path("data/patches.parquet"), description="manifest with LR patches"
    )
    weights: list[str] = Field(
        min_length=1,
        description="networks, [NAME=]SOURCE each: a weights file or name, or a run's folder",
    )
    out: Path = Field(Path("data/compare.png"), description="the sheet to write")
    patches: int = Field(6, ge=1, description="patches, one per row")
    device: Device = Field("auto", description="where networks run")


def most_textured(manifest: Manifest, count: int) -> np.ndarray:
    """Row numbers of the LR patches with the most texture, one of each photograph, best first.

    manifest: opened with its metadata columns. Photographs take turns if there are fewer.
    """
    columns = ["image_id", "role", "texture"]
    tables = []
    for file in manifest.parts:
        with opened(file, read_footer(file), columns) as part:
            tables.append(part.read(columns))
    table = pa.concat_tables(tables)
    rows = np.flatnonzero(table["role"].to_numpy() == "lr")
    photographs, texture = (table[name].to_numpy()[rows] for name in ("image_id", "texture"))
    order = np.argsort(-texture.astype(float), kind="stable")
    turn = np.zeros(len(rows), int)  # how many better patches of its photograph there are
    seen: dict[str, int] = {}
    for index in order:
        turn[index] = seen[photographs[index]] = seen.get(photographs[index], -1) + 1
    best: np.ndarray = rows[order[np.argsort(turn[order], kind="stable")]][:count]
    return best


def run(config: CompareConfig) -> None:
    """Write the sheet. Raises UserError."""
    if config.out.suffix.lower() != ".png":
        raise UserError(f"--out {config.out}: not the name of a PNG", "use one that ends in .png")
    named = parse_methods([BICUBIC, *(w for w in config.weights if w != BICUBIC)], [])
    check_file(config.out, [config.manifest, *(m.source for m in named if m.is_network)])
    open_manifest(config.manifest, (), config)
    methods = locate_weights(named)  # before PyTorch loads
    import torch

    from trainer.data.dataset import COLUMNS, Patches
    from trainer.sheets import bicubic, nearest, write_sheet

    manifest = open_manifest(config.manifest, COLUMNS, config)
    chosen = most_textured(manifest, config.patches)
    pixels = np.stack(Patches(manifest).pixels("lr", chosen))
    lr = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    columns = {"LR": nearest(lr, SCALE), BICUBIC: bicubic(lr, SCALE)}
    networks = [method for method in methods if method.is_network]
    with progress(len(networks), "networks", "network", quiet=len(networks) < 2) as bar:
        for method in networks:
            columns[method.name] = _enlarge(method, pixels, config.device)
            bar.update()
    write_sheet(config.out, columns)
    say(f"{counted(len(lr), 'far patch')}, {', '.join(columns)}: {config.out}")


def _enlarge(method: Method, pixels: np.ndarray, device: Device) -> torch.Tensor:
    """A network's output for patches, (n, h, w, 3) uint8 to (n, 3, 4h, 4w) in [0, 1]."""
    import torch

    from trainer.models.load import load_sr

    assert method.weights is not None
    network = load_sr(method.weights).to(pick_device(device)).eval()
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(pick_device(device)) / 255
    with torch.inference_mode():
        return torch.cat([network(one[None]).float().cpu().clamp(0, 1) for one in batch])


def following(config: CompareConfig) -> list[object]:
    """The next command: upscaling with the last of the networks."""
    source = parse_methods(config.weights, [])[-1].source
    return ["lasr", "upscale", "--weights", source, "PICTURE", "--out", "data/upscaled"]


main = Command(
    CompareConfig, run, name="lasr compare", about=__doc__, weights=True, following=following
)

if __name__ == "__main__":
    sys.exit(main())
