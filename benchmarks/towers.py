"""Measure what image encoders judge quality by: detail, or the size of the pictures alone.

    python -m benchmarks.towers --manifest data/proof/depth --unseen data/proof/unseen

Encoders learn equations (1) and (3) alone, as in a run of `lasr train`, and are then asked of
photographs that they have not seen which patches are far and which near: as they are, and with the
far ones enlarged to the size of the near ones. What is lost in between was told by size. `b32` and
`l14` have the shapes of OpenAI's towers, at --width of them, and random weights from --seed. As in
section 3.2, they have no positions.
"""

import sys
from pathlib import Path
from typing import Any

import open_clip
import torch
from pydantic import BaseModel, Field

from lasr.cli import Command, progress
from lasr.device import Device, Precision, autocast, pick_device, pick_precision
from lasr.errors import UserError
from lasr.weights.clip import Clip
from lasr.weights.locate import locate
from schemas.manifest import SCALE, open_manifest
from trainer import losses
from trainer.config import EncoderView
from trainer.data.dataset import COLUMNS, Patches
from trainer.models.encoders import Encoders, load_encoders
from trainer.sheets import bicubic
from trainer.watch.encoders import EncoderProbe
from trainer.watch.pictures import HeldOut
from trainer.watch.validation import undisturbed

VISION = {
    "b32": {"patch_size": 32, "width": 768, "layers": 12},
    "l14": {"patch_size": 14, "width": 1024, "layers": 24},
}
VIEWS: list[EncoderView] = ["paper", "equal-size"]
SHOWN = {
    "quality_as_is": "as they are", "quality_equal_size": "at equal size",
    "bicubic_called_good": "bicubic called good", "retrieval_top1": "retrieval, top 1",
}  # fmt: skip


class TowersConfig(BaseModel):
    """The parameters of this benchmark."""

    manifest: Path = Field(description="to train on")
    unseen: Path = Field(description="manifest of other photographs, to measure on")
    towers: list[str] = Field(
        ["clip-small", "b32", "l14"], description=f"of {[*VISION]}, and names or folders of CLIPs"
    )
    width: float = Field(0.5, gt=0, le=1, description="of the shapes with random weights, of 1")
    steps: int = Field(200, ge=1, description="training steps")
    batch_size: int = Field(16, ge=2, description="patches of each role in a step")
    lr: float = Field(5e-5, gt=0, description="learning rate")
    seed: int = Field(0, ge=0, description="of weights and batches")
    precision: Precision = Field("auto", description="of the encoders")
    device: Device = Field("auto", description="where they run")


def random_clip(shape: str, width: float, seed: int) -> Clip:
    """A CLIP with the image tower of a shape and random weights."""
    vision: dict[str, Any] = VISION[shape] | {"image_size": 224, "head_width": 64}
    vision["width"] = max(64, round(vision["width"] * width / 64) * 64)
    text = {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(256, vision, text, quick_gelu=True).eval().requires_grad_(False)
    return Clip(model, lambda picture: picture, open_clip.get_tokenizer("ViT-L-14"), "random")


def encoders_of(config: TowersConfig, tower: str, device: torch.device) -> Encoders:
    """The encoders of a tower, ready to learn. Raises WeightsError."""
    if tower in VISION:
        return Encoders(random_clip(tower, config.width, config.seed)).to(device)
    return load_encoders(locate(tower, "clip"), device)


def open_patches(path: Path, seed: int, augmentation: Any) -> Patches:
    """The patches of a manifest, all of them."""
    return Patches(open_manifest(path, COLUMNS), seed, augmentation=augmentation)


def measure(config: TowersConfig, tower: str, view: EncoderView) -> dict[str, float]:
    """Train the encoders of a tower, and ask them about unseen photographs."""
    device = pick_device(config.device)
    mixed = autocast(device, pick_precision(config.precision, device, old_gpu="float32"))
    encoders = encoders_of(config, tower, device)
    trained = [p for p in encoders.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, config.lr)
    unseen = open_patches(config.unseen, config.seed, "none")
    every = unseen.batch(0, len(unseen))
    roles = HeldOut(every.lr, every.lr_captions), HeldOut(every.hr, every.hr_captions)
    probe = EncoderProbe(encoders, *roles, (["bad"], ["good"]), lambda: mixed)
    patches, size = open_patches(config.manifest, config.seed, "all"), config.batch_size
    with progress(config.steps, f"steps of {tower}, {view}", "step") as bar:
        for batch in patches.batches(0, config.steps, size, 4):
            lr, hr = batch.lr.to(device), batch.hr.to(device)
            texts = [*batch.lr_captions, *batch.hr_captions, "bad", "good"]
            with mixed:
                far = encoders.images(bicubic(lr, SCALE) if view == "equal-size" else lr)
                near, words = encoders.images(hr), encoders.texts(texts)
            low, high = words[-2:-1], words[-1:]
            loss = 0.5 * losses.content_encoders(far, near, words[:size], words[size:-2])
            loss = loss + 0.5 * losses.quality_encoders(far, near, low, high)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
    with undisturbed(encoders):
        return probe()


def run(config: TowersConfig) -> None:
    """Measure each tower with each view, and print a line as soon as it is known."""
    for tower in config.towers:
        if tower not in VISION:
            locate(tower, "clip")
    if not (config.manifest.exists() and config.unseen.exists()):
        raise UserError("no manifest", "make them by `python -m benchmarks.proof --only prepare`")
    print(f"| tower | the encoders see | {' | '.join(SHOWN.values())} |")
    print("|---" * (len(SHOWN) + 2) + "|", flush=True)
    for tower in config.towers:
        for view in VIEWS:
            found = measure(config, tower, view)
            cells = (f"{found[name]:.2f}" for name in SHOWN)
            print(f"| {tower} | {view} | {' | '.join(cells)} |", flush=True)


main = Command(TowersConfig, run, name="python -m benchmarks.towers", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
