"""A run's state on disk: written atomically, tensors and plain values only: it runs no code."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch

from lasr.errors import UserError
from lasr.files import atomic_path, write_bytes
from trainer.config import FREE_TO_CHANGE, TrainConfig

log = logging.getLogger(__name__)

NAME, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save(folder: Path, step: int, **states: dict[str, Any]) -> None:
    """Replace the checkpoint of a run by a new one when that is whole; the one before is kept too.

    step: how many steps are done. states: state dicts of networks and optimizers.
    """
    path = folder / NAME
    with atomic_path(path) as temporary:
        torch.save({"step": step, **states}, temporary)
        if path.exists():
            os.replace(path, folder / PREVIOUS)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run, on the CPU, or None where there is none yet.

    Raises UserError: there are some, and none can be read.
    """
    faults = []
    for path in (folder / NAME, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            step = int(state["step"])
        except Exception as error:  # damaged bytes raise nearly anything
            faults.append(f"{path}: the checkpoint cannot be read ({type(error).__name__})")
            continue
        if faults:
            log.warning("%s; carrying on from %s, after step %d", faults[0], path.name, step)
        return state
    if faults:
        raise UserError(f"{'; '.join(faults)}; remove it to start over, or choose another --out")
    return None


def check_folder(folder: Path, manifest: Path) -> dict[str, Any]:
    """Refuse a folder that is no run's; returns the config.json of the run in it, {} for none.

    A run is known by its config.json. Writes nothing. Raises UserError.
    """
    if folder.resolve() in (Path.cwd(), Path("/")):
        raise UserError(f"--out '{folder}': names no run; give it a name, such as data/runs/mine")
    if manifest.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{folder}: lies inside the manifest {manifest}; choose another --out")
    path = folder / "config.json"
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); choose another --out") from error
        if not isinstance(before, dict) or not {"manifest_identity", "weights"} <= before.keys():
            raise UserError(
                f"{path}: is not the config.json of a run; nothing was changed: choose another"
                " --out"
            )
        return before
    if folder.exists():
        others = (
            [p.name for p in folder.iterdir() if p.name != ".config.json.tmp"]
            if (folder.is_dir())
            else [folder.name]
        )
        if others:
            raise UserError(
                f"{folder}: holds {min(others)} and no run; nothing was changed: choose another"
                " --out"
            )
    return {}


def claim_folder(config: TrainConfig, manifest: str, weights: dict[str, str]) -> None:
    """Make the run's folder and its config.json; refuse a folder that holds another run.

    manifest, weights: identities, so that config.json tells all that is needed to repeat the run.
    Raises UserError naming the first setting that differs.
    """
    path = config.folder / "config.json"
    settings = json.loads(config.model_dump_json()) | {
        "manifest_identity": manifest,
        "weights": weights,
    }
    if before := check_folder(config.folder, config.manifest):
        # What a run of an older version did not know yet, it did as the default does now.
        defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
        for name, value in settings.items():
            was = before.get(name, defaults.get(name))
            if name not in FREE_TO_CHANGE and was != value:
                raise UserError(
                    f"{config.folder}: holds a run with {name} = {was}, now it is"
                    f" {value}; choose another --out"
                )
    write_bytes(path, (json.dumps(settings, indent=2) + "\n").encode())


def read_config(folder: Path) -> tuple[TrainConfig, dict[str, str]]:
    """The settings of a run, and the identities of the weights it started from (claim_folder).

    Raises UserError: the folder holds no run, or one of another version of this program.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text())
        weights: dict[str, str] = settings["weights"]
        known = {k: v for k, v in settings.items() if k in TrainConfig.model_fields}
        return TrainConfig(**known), weights
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: no readable config.json of a run ({type(error).__name__}); give the folder"
            " that trainer.run wrote, such as data/runs/NAME"
        ) from error


def trim_stats(path: Path, step: int) -> None:
    """Drop the lines of stats.jsonl beyond `step`: they will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break  # a line cut short by a kill
    write_bytes(path, "".join(line + "\n" for line in kept).encode())
