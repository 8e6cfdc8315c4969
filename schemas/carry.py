"""Weights on this machine: compared with their digests, and copied into one folder to carry."""

import shutil
from pathlib import Path

from schemas.commandline import progress
from schemas.digests import SUMS, add_sum, read_sums, sha256
from schemas.download import defect
from schemas.fetch import check_free, sole_fetch
from schemas.files import atomic_path
from schemas.weights import WeightsError, check_here, differs, found, weights_folder
from schemas.weights_table import TABLE, File, Weights

METRICS = "metrics"  # beside the weights stand those of trainer.metrics


def verify(entries: list[Weights] | None) -> None:
    """Compare every file with what was published and recorded, one line each; None: all here.

    Raises WeightsError at the end: how many are defective.
    """
    folder = weights_folder()
    if entries is not None:
        check_here(entries)
    files = [
        each
        for weights in entries or [weights for weights in TABLE.values() if entries is None]
        for each in found(weights) or _some(folder, weights)
    ]
    if entries is None:
        known = {path for _, path in files}
        recorded = [folder / name for name in read_sums(folder)]
        files += [(File(path.name), path) for path in recorded if path not in known]
    defects = 0
    with progress(len(files), "verified", "files") as bar:
        for file, path in files:
            problem = problem_of(file, path)
            defects += bool(problem)
            bar.write(f"{path}: {problem or 'ok'}")
            bar.update()
    if defects:
        raise WeightsError(
            f"{defects} of {len(files)} files are defective, named above; remove them, and"
            " `python -m schemas.weights fetch` brings them again"
        )
    print(f"{len(files)} files are as published, or as recorded when they came; folder: {folder}")


def _some(folder: Path, weights: Weights) -> list[tuple[File, Path]]:
    """All files of weights of which a part only is here."""
    named = [(file, folder / weights.name / file.name) for file in weights.files]
    return named if any(path.is_file() for _, path in named) else []


def problem_of(file: File, path: Path) -> str:
    """What is wrong with a file, "" where nothing is."""
    if not path.is_file():
        return "is missing"
    try:
        found_out = differs(file, path), defect(path, path.suffix)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "; ".join(filter(None, found_out))


def export(destination: Path, entries: list[Weights] | None) -> None:
    """Copy weights into one folder with a record of digests; None: all here, metrics' as well.

    The folder is what `--weights-dir` takes. What stands there already is not copied again.
    Raises WeightsError: weights that are missing or defective, no room, the same folder.
    """
    folder = weights_folder()
    if destination.resolve() == folder.resolve():
        raise WeightsError(f"{destination}: is the folder that weights are taken from")
    if entries is not None:
        check_here(entries)
    files = [
        (file, path, f"{weights.name}/{file.name}")
        for weights in entries or [weights for weights in TABLE.values() if entries is None]
        for file, path in found(weights)
    ]
    if entries is None:
        others = [path for path in sorted((folder / METRICS).rglob("*")) if path.is_file()]
        files += [(File(p.name), p, p.relative_to(folder).as_posix()) for p in others]
    total = sum(path.stat().st_size for _, path, _ in files)
    with (
        sole_fetch(destination),
        progress(total, "exported", "B", scaled=True) as bar,
    ):
        check_free(destination, total // 1_000_000)
        for file, path, name in files:
            if problem := problem_of(file, path):
                raise WeightsError(f"{path}: {problem}; it is not exported")
            _copy(path, destination / name)
            add_sum(destination, name, sha256(path))
            bar.update(path.stat().st_size)
    print(
        f"{len(files)} files, {total / 1e6:.0f} MB, in {destination}: take it along and use it with"
        f" --weights-dir or LASR_WEIGHTS; `sha256sum --check {SUMS}` in it finds a bad copy"
    )


def _copy(path: Path, target: Path) -> None:
    if target.is_file() and sha256(target) == sha256(path):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
        if sha256(temporary) != sha256(path):
            raise WeightsError(f"{target}: the copy differs from {path}; the disk may be failing")
