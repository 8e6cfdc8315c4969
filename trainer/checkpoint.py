"""A run's state on disk: written atomically, tensors and plain values only: it runs no code."""

import json
from pathlib import Path
from typing import Any

import torch

from schemas.errors import UserError
from schemas.files import atomic_path, write_bytes
from trainer.config import FREE_TO_CHANGE, TrainConfig

NAME = "checkpoint.pt"


def save(folder: Path, step: int, **states: dict[str, Any]) -> None:
    """Replace the checkpoint of a run: the old one stays until the new one is whole.

    step: how many steps are done. states: state dicts of networks and optimizers.
    """
    with atomic_path(folder / NAME) as temporary:
        torch.save({"step": step, **states}, temporary)


def load(folder: Path) -> dict[str, Any] | None:
    """The checkpoint of a run, on the CPU, or None. Raises UserError: it cannot be read."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(
            f"{path}: the checkpoint cannot be read ({type(error).__name__}); remove it to start"
            " over, or choose another --out"
        ) from error
    return state


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
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: not readable as JSON ({error}); choose another --out"
            ) from error
        for name, value in settings.items():
            if name not in FREE_TO_CHANGE and before.get(name) != value:
                raise UserError(
                    f"{config.folder}: holds a run with {name} = {before.get(name)}, now it is"
                    f" {value}; choose another --out, or remove that folder"
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
