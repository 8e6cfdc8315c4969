"""The state of a run on disk: checkpoints, and the config.json that says whose folder it is.

Checkpoints are replaced atomically. They hold tensors and plain values, and loading one runs no
code.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lasr import ownership
from lasr.errors import UserError, one_line, space_on_disk, writing
from lasr.files import IsOurs, atomic_path, read_text, write_bytes
from lasr.marks import KEY
from lasr.weights.tensors import add_digest, check_digest, check_sizes, read_tensors
from schemas.digest import Damaged
from trainer.config import TrainConfig
from trainer.pretrain.config import PretrainConfig

log = logging.getLogger(__name__)

RunConfig = TrainConfig | PretrainConfig

NAME, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
ENCODERS = "encoders.safetensors"  # those of a finished run
# What others may have put into a run's folder, and a run would replace.
OUTPUTS = (
    "model.safetensors",
    "model.pth",
    "model_ema.safetensors",
    "model_ema.pth",
    "best.safetensors",
    "encoders.safetensors",
    "nonfinite.json",
)
# What runs did that are older than a setting, where it is not what is the default now.
EARLIER = {"split": "all"}


def save(folder: Path, step: int, **states: dict[str, Any]) -> None:
    """Replace the checkpoint of a run; the last one stays as `checkpoint.previous.pt`.

    step: number of finished steps. states: state dicts of networks and optimizers. Raises
    UserError: it cannot be written, for example because the disk is full. The last checkpoint then
    stays as it is.
    """
    path = folder / NAME
    try:
        with atomic_path(path) as temporary:
            torch.save({"step": step, **states}, temporary)
            add_digest(temporary)
            if path.exists():
                os.replace(path, folder / PREVIOUS)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
        raise UserError(
            f"{path}: the checkpoint of step {step} cannot be written ({one_line(error, 100)};"
            f" {space_on_disk(path, _size(states))})",
            "free some disk space and run the same command, which resumes from the last checkpoint",
        ) from error


def _size(state: Any) -> int:
    """The bytes of all tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(_size, state.values()))
    return sum(map(_size, state)) if isinstance(state, list | tuple) else 0


def load(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run, on the CPU, or None if there is none yet.

    All bytes are checked first. A damaged one is named, and the one before it is taken.
    Raises UserError: there are checkpoints, and none can be read.
    """
    faults = []
    for path in (folder / NAME, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            check_sizes(path)
            check_digest(path)
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            step = int(state["step"])
        except Exception as error:  # damaged bytes raise nearly anything
            why = one_line(error, 100) if isinstance(error, Damaged) else type(error).__name__
            faults.append(f"{path}: the checkpoint cannot be read ({why})")
            continue
        if faults:
            log.warning("%s; resuming from %s, after step %d", faults[0], path.name, step)
        return state
    if faults:
        raise UserError("; ".join(faults), "remove it to start over, or choose another --out")
    return None


def load_trained_encoders(run: Path, encoders: nn.Module, clip_name: str) -> None:
    """Give `encoders`, those of `clip_name`, the weights they have in another run (--encoders).

    run: its folder, or its encoders.safetensors. Raises UserError: no encoders there, or those of
    another CLIP.
    """
    file = run / ENCODERS if run.is_dir() else run
    state = load(run) if run.is_dir() else None
    if state is None and not file.is_file():
        raise UserError(f"--encoders {run}: no checkpoint there", "pass the folder of a run")
    try:
        encoders.load_state_dict(state["encoders"] if state else read_tensors(file))
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--encoders {run}: that run trained another CLIP than {clip_name}",
            "pass the same --clip",
        ) from error


def check_folder(folder: Path, inputs: Iterable[object]) -> dict[str, Any]:
    """The config.json of the run in `folder`, {} if the folder is free. Writes nothing.

    inputs: what the run reads: the manifest, and files and folders of weights. Raises UserError:
    the folder holds something else than a run, or cannot be a run's.
    """
    ownership.check_folder(folder, inputs)
    path = folder / "config.json"
    if path.is_symlink():
        raise ownership.refused(path, "is a link, and a run's is a file")
    if path.exists():
        try:
            config = json.loads(read_text(path))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read ({one_line(error)})", "choose another --out"
            ) from error
        if not isinstance(config, dict) or not (
            {"manifest_identity", "images_identity"} & config.keys()
            and isinstance(config.get("weights"), dict)
        ):
            raise UserError(
                f"{path}: is not the config.json of a run; nothing was changed",
                "choose another --out",
            )
        for name in OUTPUTS if KEY in config["weights"] else ():
            if os.path.lexists(folder / name) and not ownership.is_ours(folder / name):
                raise ownership.refused(folder / name, "was not written by LA-SR")
        return config
    if folder.exists():
        others = [path.name for path in folder.iterdir() if not _is_started(path)]
        if others:
            raise UserError(
                f"{folder}: holds {min(others)} and no run; nothing was changed",
                "choose another --out",
            )
    return {}


def _is_started(path: Path) -> bool:
    """Whether a file is of a run that was killed at its very start."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.name in ("lock", "lock.json"):
        return ownership.is_lock(path.read_bytes())
    return path.name == ".config.json.tmp"


def may_replace(folder: Path) -> IsOurs | None:
    """Which weights in a run's folder may be replaced; None: all.

    Version 0.1.0 wrote no mark into weights: in its folders, config.json speaks for them.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ownership.is_ours if KEY in settings["weights"] else None


def check_settings(
    config: RunConfig, data: str, weights: dict[str, str], former: str = ""
) -> dict[str, Any]:
    """The config.json that a run's folder should have.

    data, weights: identities, so that config.json is enough to repeat the run; data: of the
    manifest or the photographs. former: the manifest's identity in earlier versions, by which
    their runs resume. Writes nothing.
    Raises UserError: the folder holds a run with other settings; it names the first that differs.
    """
    before = check_folder(config.folder, config.inputs)
    identity = f"{config.DATA}_identity"
    if before and identity not in before:
        other = "lasr pretrain" if config.DATA == "manifest" else "lasr train"
        raise UserError(f"{config.folder}: holds a run of `{other}`", "choose another --out")
    # Weights that this version writes bear a mark, those of version 0.1.0 did not.
    marked = {KEY: "marked"} if not before or KEY in before["weights"] else {}
    settings: dict[str, Any] = json.loads(config.model_dump_json()) | {
        identity: data,
        "weights": weights | marked,
    }
    if before:
        # A run of an older version did what is the default of a setting it did not have.
        fields = type(config).model_fields
        defaults = {name: field.default for name, field in fields.items()} | EARLIER
        for name, value in settings.items():
            was = before.get(name, defaults.get(name))
            if name == identity and was == former:
                continue
            if name not in config.may_change and was != value:
                raise UserError(
                    f"{config.folder}: holds a run with {name} = {was}, now it is {value}",
                    "choose another --out",
                )
    return settings


def as_started(config: TrainConfig) -> TrainConfig:
    """The settings with which an older run goes on in its folder, so that it stays the same run.

    Raises UserError as `check_folder`.
    """
    before = check_folder(config.folder, config.inputs)
    if not before or "manifest_identity" not in before:
        return config
    missing = {name: value for name, value in EARLIER.items() if name not in before}
    if missing:
        log.warning("%s: began before rows were held out, and goes on with all", config.folder)
    return config.model_copy(update=missing)


def claim_folder(config: RunConfig, data: str, weights: dict[str, str], former: str = "") -> None:
    """Create the run's folder and its config.json, or write it again with what may change.

    data, weights, former: as in `check_settings`, which raises UserError first.
    """
    settings = check_settings(config, data, weights, former)
    content = json.dumps(settings, indent=2) + "\n"
    path = config.folder / "config.json"
    with writing(path, "free some disk space and run the same command", len(content)):
        write_bytes(path, content.encode())


def read_config(folder: Path) -> tuple[TrainConfig, dict[str, str]]:
    """The settings of a run of `lasr train`, and the identities of the weights it started from.

    Raises UserError: no run in the folder, or one of an incompatible version.
    """
    settings = read_settings(folder)
    try:
        weights = {name: str(settings["weights"][name]) for name in ("sr_init", "clip", "vgg")}
        known = {k: v for k, v in settings.items() if k in TrainConfig.model_fields}
        return TrainConfig(**known), weights
    except (ValueError, KeyError, TypeError) as error:
        raise _no_run(folder, error) from error


def read_start(folder: Path) -> str:
    """The identity of the weights that the SR network of a run, of either kind, started from.

    Raises UserError: no run in the folder.
    """
    settings = read_settings(folder)
    try:
        return str(settings["weights"]["sr_init"])
    except (KeyError, TypeError) as error:
        raise _no_run(folder, error) from error


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of a run's config.json. Raises UserError: no run in the folder."""
    try:
        settings = json.loads(read_text(folder / "config.json"))
        if not isinstance(settings, dict):
            raise TypeError
        return settings
    except (OSError, ValueError, TypeError) as error:
        raise _no_run(folder, error) from error


def _no_run(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder}: no readable config.json of a run ({type(error).__name__})",
        "pass the folder that `lasr train` wrote, such as data/runs/NAME",
    )
