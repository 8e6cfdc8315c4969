"""Enlarge pictures x4 with a trained network.

python -m trainer.upscale --weights data/runs/patches/model.safetensors photo.jpg --out enlarged
python -m trainer.upscale --weights realesrgan-x4plus folder/ --out enlarged --passes 2
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, Field
from torch import Tensor, nn

from schemas.commandline import parse, progress, run_command
from schemas.device import Device, pick_device
from schemas.errors import UserError
from schemas.files import atomic_path
from schemas.manifest import SCALE
from trainer.network import load_sr
from trainer.pictures import to_uint8

OVERLAP = 32  # pixels of context around a tile; beyond it the network's reach is faint
FORMATS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"])


class UpscaleConfig(BaseModel):
    """What `trainer.upscale` takes."""

    inputs: list[Path] = Field(min_length=1, description="pictures, or folders of them")
    weights: str = Field(description="a run's model.safetensors, any x4 RRDB, or a name")
    out: Path = Field(description="folder for the enlarged pictures (PNG)")
    passes: int = Field(1, ge=1, le=3, description="2 enlarges x16 (appendix E.2)")
    tile: int = Field(
        256, ge=16, description="side of the squares that are enlarged one by one; bounds memory"
    )
    device: Device = Field("auto", description="where the network runs")


@torch.inference_mode()
def upscale(network: nn.Module, picture: Tensor, tile: int) -> Tensor:
    """(3, h, w) in [0, 1] to (3, 4h, 4w) in [0, 1], tile by tile.

    Each tile is enlarged with OVERLAP pixels of its surroundings, which are cut off again. Only
    the tile lives on the network's device.
    """
    device = next(network.parameters()).device
    _, height, width = picture.shape
    result = torch.empty(3, SCALE * height, SCALE * width)
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            top, left = max(y - OVERLAP, 0), max(x - OVERLAP, 0)
            bottom, right = min(y + tile, height), min(x + tile, width)
            part = picture[:, top : bottom + OVERLAP, left : right + OVERLAP]
            enlarged = network(part[None].to(device))[0].float().cpu()
            inner = enlarged[
                :,
                SCALE * (y - top) : SCALE * (bottom - top),
                SCALE * (x - left) : SCALE * (right - left),
            ]
            result[:, SCALE * y : SCALE * bottom, SCALE * x : SCALE * right] = inner
    if not torch.isfinite(result).all():
        raise UserError("the network's answer is not finite; check the weights")
    return result.clamp_(0, 1)


def read_picture(path: Path) -> Tensor:
    """An upright RGB picture, (3, h, w) float32 in [0, 1]. Raises UserError: unreadable."""
    try:
        with Image.open(path) as image:
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(f"{path}: not a readable picture ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)


def find_pictures(inputs: list[Path]) -> list[Path]:
    """Files as they are given, folders by the pictures directly in them. Raises UserError."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found += sorted(f for f in path.iterdir() if f.suffix.lower() in FORMATS)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such picture or folder; check the path")
    if not found:
        raise UserError(f"no picture in {', '.join(map(str, inputs))}")
    return found


def run(config: UpscaleConfig) -> None:
    """Enlarge every picture; one that fails is named at the end and stops no other."""
    found = find_pictures(config.inputs)
    network = load_sr(config.weights).eval().to(pick_device(config.device))
    failed: list[str] = []
    with progress(len(found), "pictures", "img") as bar:
        for path in found:
            try:
                picture = read_picture(path)
                for _ in range(config.passes):
                    picture = upscale(network, picture, config.tile)
                target = config.out / f"{path.stem}.png"
                if target.exists() and target.samefile(path):
                    raise UserError(f"{path}: the result would overwrite it; choose another --out")
                with atomic_path(target) as temporary:
                    Image.fromarray(to_uint8(picture)).save(temporary, format="PNG")
            except UserError as error:
                failed.append(str(error))
            bar.update()
    print(f"enlarged: {len(found) - len(failed)} of {len(found)}, in {config.out}")
    if failed:
        raise UserError("; ".join(failed))


def main(argv: list[str] | None = None) -> int:
    """The command `python -m trainer.upscale`."""
    config = parse(
        UpscaleConfig, argv, "python -m trainer.upscale", __doc__ or "", positional="inputs"
    )
    return run_command(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
