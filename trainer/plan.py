"""What is checked before the first step, and what a dry run says."""

import shutil

import torch

from lasr.device import pick_device
from lasr.errors import UserError
from lasr.weights.locate import Located, locate_all
from schemas.manifest import SCALE, open_manifest
from trainer.checkpoint import check_folder
from trainer.config import TrainConfig
from trainer.data.dataset import COLUMNS, Patches


def find_weights(config: TrainConfig) -> dict[str, Located]:
    """The run's weights by field of its config. Raises WeightsError that names all missing."""
    sr, clip, vgg = locate_all(
        (config.sr_name, "sr"), (config.clip_name, "clip"), (config.vgg_name, "vgg")
    )
    return {"sr_init": sr, "clip": clip, "vgg": vgg}


def open_patches(config: TrainConfig, processes: int = 1) -> Patches:
    """The manifest, checked for what training needs. Raises ManifestError or UserError."""
    if config.batch_size % processes:
        raise UserError(
            f"--batch-size {config.batch_size}: is the batch of all processes together, and"
            f" {processes} cannot share it evenly; take a multiple of {processes}"
        )
    check_folder(config.folder, config.manifest)
    manifest = open_manifest(config.manifest, COLUMNS)
    patches = Patches(manifest, config.seed, config.degrade, config.pairing)
    if len(patches) < config.batch_size:
        raise UserError(
            f"{config.manifest}: {len(patches)} lr patches are fewer than a batch of"
            f" {config.batch_size}; take --batch-size {max(len(patches), 2)} or more photographs"
        )
    return patches


def check_compiler(device: torch.device, mode: str) -> None:
    """Compile one line. Raises UserError where torch.compile cannot work on this machine."""
    try:
        torch.compile(torch.sin, mode=mode)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler shows as any of a dozen classes
        needs = "Triton (it comes with PyTorch for CUDA)" if device.type == "cuda" else "g++"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--compile {mode}: torch.compile does not work here ({reason}); install {needs}"
            f" and a C compiler ({shutil.which('cc') or 'none found'}), or leave --compile out"
        ) from error


def describe(config: TrainConfig, processes: int = 1) -> str:
    """What a run would do and what it needs, for --dry-run. Loads no network."""
    patches = open_patches(config, processes)
    epochs = config.steps * config.batch_size / len(patches)
    return "\n".join(
        [
            f"manifest: {config.manifest}, {len(patches)} lr and"
            f" {len(patches.is_lr) - len(patches)} hr patches",
            f"run:      {config.steps} steps of {config.batch_size}, {epochs:.1f} epochs,"
            f" x{SCALE} on {pick_device(config.device)}, {config.precision}",
            f"batch:    {config.batch_size} LR and as many HR patches,"
            f" {config.batch_size // processes} on each of {processes} processes",
            f"weights:  {', '.join(found.identity for found in find_weights(config).values())}",
            f"folder:   {config.folder}",
        ]
    )
