"""What is checked before the first step, and the text of a dry run."""

import logging
import shutil
from dataclasses import dataclass

import torch

from lasr.device import pick_device, pick_precision
from lasr.errors import UserError
from lasr.lock import check_free
from lasr.storage.manifest import open_manifest
from lasr.terminal.summary import counted
from lasr.weights.locate import Located, locate_all
from lasr.weights.registry import TABLE
from schemas.manifest import SCALE, Role
from trainer import checkpoint
from trainer.checkpoint import RunConfig, check_folder
from trainer.config import CompileMode, TrainConfig
from trainer.data.dataset import COLUMNS, Patches
from trainer.data.skipped import SkippedRows, check_index, read_skipped
from trainer.watch.pictures import Look, given, is_watched
from trainer.watch.tracker import find_wandb

log = logging.getLogger(__name__)

BEING_TRAINED = "being trained"  # what the holder of a run's lock does


@dataclass(frozen=True)
class RunWeights:
    """The weights that a run starts from."""

    sr: Located
    clip: Located
    vgg: Located

    @property
    def identities(self) -> dict[str, str]:
        """The identity of each, by its field of the config, as config.json records them."""
        return {
            "sr_init": self.sr.identity,
            "clip": self.clip.identity,
            "vgg": self.vgg.identity,
        }


def weight_names(config: TrainConfig) -> list[str]:
    """Names or paths of the weights of the SR network, the CLIP and the VGG term.

    A profile's weights change between versions: those of `offline` were once random. A run that
    took its profile's resumes with the same ones.
    """
    names = {"sr_init": config.sr_name, "clip": config.clip_name, "vgg": config.vgg_name}
    try:
        before, identities = checkpoint.read_config(config.folder)
    except UserError:  # no run yet, or one that the checks of the folder refuse
        return list(names.values())
    for field, identity in identities.items():
        own = identity.partition("@")[0]
        given = before.profile != config.profile or getattr(before, field) or getattr(config, field)
        if own in TABLE and not given:
            names[field] = own
    return list(names.values())


def find_weights(config: TrainConfig) -> RunWeights:
    """Locate the run's weights. Raises WeightsError that names all that are missing."""
    sr, clip, vgg = weight_names(config)
    return RunWeights(*locate_all((sr, "sr"), (clip, "clip"), (vgg, "vgg")))


def open_patches(config: TrainConfig, processes: int = 1) -> Patches:
    """Open the manifest and check that it can be trained on. Raises ManifestError or UserError."""
    if config.batch_size % processes:
        raise UserError(
            f"--batch-size {config.batch_size}: this is the batch of all processes together, and"
            f" {processes} processes cannot share it evenly",
            f"pass a multiple of {processes}",
        )
    if processes % config.shards and config.shards % processes:
        raise UserError(
            f"--shards {config.shards}: {counted(processes, 'process')} would read parts of the"
            " same shards",
            "pass the number of machines or of processes",
        )
    check_folder(config.folder, config.inputs)
    manifest = open_manifest(config.manifest, COLUMNS, config)
    if isinstance(config.manifest, str) and processes > 1 == config.shards:
        log.info(
            "each process fetches nearly all row groups; with --shards %d, or the number of"
            " machines, they would fetch disjoint ones, in another order of training",
            processes,
        )
    needed: list[Role] = ["lr"] if config.freeze_encoders else ["lr", "hr"]
    patches = Patches(
        manifest, config.seed, config.degrade, config.pairing, config.augment, config.split, needed,
        config.shards,
    )  # fmt: skip
    check_index(patches, config.max_skipped)
    if len(patches) < config.batch_size:
        most = len(patches) // processes * processes
        fix = "build the manifest from more photographs, or with a larger --k"
        raise UserError(
            f"{config.manifest}: {counted(len(patches), 'lr patch')}, fewer than a batch of"
            f" {config.batch_size}",
            f"pass --batch-size {most}, or {fix}" if most >= 2 else fix,
        )
    return patches


def warn_of_encoders(config: TrainConfig) -> None:
    """Warn if encoders are frozen that never learned quality (appendix E.1)."""
    if not config.freeze_encoders:
        return
    if config.encoders is None:
        why, fix = "they are the CLIP's own, which", "pass --encoders RUN, a run that trained them"
    else:
        folder = config.encoders if config.encoders.is_dir() else config.encoders.parent
        try:
            run, _ = checkpoint.read_config(folder)
        except UserError:
            return  # encoders.safetensors in another place: nothing is known of its run
        if not run.freeze_encoders and run.weight_quality > 0:
            return
        why, fix = f"the run {folder} did not train them on it, so they", "pass another --encoders"
    log.warning(
        "--freeze-encoders: %s never learned quality: equation (4) then teaches little; %s",
        *(why, fix),
    )


def check_watching(config: TrainConfig, patches: Patches) -> list[Look]:
    """Check what a run is validated on; the pictures of --validate-on.

    Says in one line if rows are held out, or why nothing is validated, and warns of frozen encoders
    that know nothing. Raises UserError.
    """
    warn_of_encoders(config)
    if config.wandb:
        find_wandb()
    looks = given(config)
    if held := int(patches.held_out.sum()):
        log.info("%s of the manifest held out for validation", counted(held, "row"))
    else:
        other = "--split all" if config.split == "all" else "the manifest holds none out"
        log.info("all rows are trained on (%s)", other)
    if config.cadence and not is_watched(patches, config):
        log.info("no validation: hold photographs out (the column split), or pass --validate-on")
    return looks


def check_compiler(device: torch.device, mode: CompileMode) -> None:
    """Compile one line. Raises UserError if torch.compile does not work on this machine."""
    try:
        torch.compile(torch.sin, mode=mode)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler raises any of a dozen classes
        needs = "Triton (it comes with PyTorch for CUDA)" if device.type == "cuda" else "g++"
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"--compile {mode}: torch.compile does not work here ({reason})",
            f"install {needs} and a C compiler ({shutil.which('cc') or 'none found'}), or omit"
            " --compile",
        ) from error


def check_steps(config: RunConfig, done: int) -> None:
    """Raise UserError if a run has done more steps than it is to do."""
    if done > config.steps:
        raise UserError(
            f"{config.folder}: holds a run of {done} steps, more than --steps {config.steps}",
            "pass more steps or another --out",
        )


def check_run(config: TrainConfig, patches: Patches, weights: RunWeights) -> int:
    """Check what `train` would find in the run's folder; the number of finished steps.

    Changes nothing. Raises UserError: another process trains there, the settings differ, the
    checkpoint cannot be read or is beyond --steps, or the run has skipped too many rows.
    """
    check_free(config.folder, BEING_TRAINED)
    manifest = patches.manifest
    checkpoint.check_settings(
        config, manifest.identity, weights.identities, manifest.former_identity
    )
    state = checkpoint.load(config.folder)
    done = int(state["step"]) if state else 0
    check_steps(config, done)
    skipped = SkippedRows(patches, config.max_skipped, read_skipped(config.folder, done), None)
    if skipped.too_many:
        skipped.refuse()
    return done


@dataclass(frozen=True)
class Plan:
    """A run whose settings, data and weights were checked. No network is loaded."""

    config: TrainConfig
    device: torch.device
    patches: Patches
    weights: RunWeights
    done: int  # finished steps


def plan(config: TrainConfig, processes: int = 1) -> Plan:
    """Check what `train` checks, for --dry-run. Raises UserError."""
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device, old_gpu="float16")
    config = checkpoint.as_started(config.model_copy(update={"precision": precision}))
    patches, weights = open_patches(config, processes), find_weights(config)
    if config.compile != "off":
        check_compiler(device, config.compile)
    check_watching(config, patches)
    return Plan(config, device, patches, weights, check_run(config, patches, weights))


def describe(config: TrainConfig, processes: int = 1) -> str:
    """What a run would do, after the same checks. Loads no network."""
    return "\n".join(described(plan(config, processes), processes))


def described(checked: Plan, processes: int) -> list[str]:
    """The lines that say what a run would do."""
    config, patches, done = checked.config, checked.patches, checked.done
    faulty, held = len(patches.reader.index.faulty), int(patches.held_out.sum())
    epochs = config.steps * config.batch_size / len(patches)
    return [
        f"manifest: {config.manifest}, {len(patches.rows['lr'])} lr and"
        f" {len(patches.rows['hr'])} hr patches{f', {faulty} of them unusable' * (faulty > 0)}"
        f"{f'; {held} are held out' * (held > 0)}",
        f"run:      {counted(config.steps, 'step')} of {config.batch_size}, {epochs:.1f} epochs,"
        f" x{SCALE} on {checked.device}, {config.precision}{f', {done} of them done' * (done > 0)}",
        f"batch:    {config.batch_size} LR and as many HR patches,"
        f" {config.batch_size // processes} on each of {counted(processes, 'process')}",
        f"weights:  {', '.join(checked.weights.identities.values())}",
        f"folder:   {config.folder}",
    ]
