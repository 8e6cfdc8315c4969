"""Small runs for the tests of the trainer."""

from pathlib import Path
from typing import Any

import torch

from schemas.manifest import open_manifest
from tests.support.weights import load_encoders, load_rrdb
from trainer.config import TrainConfig
from trainer.data.dataset import COLUMNS, Batch, Patches
from trainer.distributed import World
from trainer.models.vgg import untrained_vgg
from trainer.step import TrainStep

CPU = torch.device("cpu")


def config(manifest: Path, models: Path, out: Path, **changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "manifest": manifest, "out": out, "profile": "test", "clip": str(models / "clip"),
        "sr_init": str(models / "sr.safetensors"), "batch_size": 2, "log_every": 1, "steps": 4,
        "sample_every": 2, "checkpoint_every": 2, "workers": 2,
    }  # fmt: skip
    return TrainConfig(**(plain | changes))


def make_step(
    manifest: Path, models: Path, out: Path, world: World | None = None, **changes: Any
) -> TrainStep:
    settings = config(manifest, models, out, **changes)
    sr_network = load_rrdb(models / "sr.safetensors")
    return TrainStep(
        settings, sr_network, load_encoders(settings.clip_name, CPU), untrained_vgg(), world
    )


def first_batch(manifest: Path, size: int = 3) -> Batch:
    return Patches(open_manifest(manifest, COLUMNS)).batch(0, size)


def flags(settings: TrainConfig) -> list[str]:
    """The command line of `lasr train` with these settings."""
    changed = settings.model_dump(exclude_defaults=True)
    return [x for name, v in changed.items() for x in (f"--{name.replace('_', '-')}", str(v))]
