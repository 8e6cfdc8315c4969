"""Weights on this machine: compared with their digests, and copied into one folder to carry."""

import shutil
from pathlib import Path

from lasr.cli import progress
from lasr.files import atomic_path
from lasr.weights.digests import SUMS, add_sum, read_sums, sha256
from lasr.weights.download import defect
from lasr.weights.fetch import check_free, sole_writer
from lasr.weights.locate import WeightsError, check_here, differs, found, weights_folder
from lasr.weights.registry import TABLE, File, Weights

METRICS = "metrics"  # beside the weights stand those of trainer.evaluate.metrics


def verify(entries: list[Weights] | None) -> None:
    """Compare every file with what was published and recorded, one line each; None: all here.

    Raises WeightsError at the end: how many are defective.
    """
    folder = weights_folder()
    files = [
        each for weights in _chosen(entries) for each in found(weights) or _some(folder, weights)
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
            " `python -m lasr.weights fetch` brings them again"
        )
    print(f"{len(files)} files are as published, or as recorded when they came; folder: {folder}")


def _chosen(entries: list[Weights] | None) -> list[Weights]:
    """The entries, all of which must be here; or None, for every one of the table."""
    if entries is None:
        return list(TABLE.values())
    check_here(entries)
    return entries


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
    files = [
        (file, path, f"{weights.name}/{file.name}")
        for weights in _chosen(entries)
        for file, path in found(weights)
    ]
    if entries is None:
        others = [path for path in sorted((folder / METRICS).rglob("*")) if path.is_file()]
        files += [(File(p.name), p, p.relative_to(folder).as_posix()) for p in others]
    for file, path, _ in files:
        if problem := problem_of(file, path):
            raise WeightsError(f"{path}: {problem}; nothing was exported")
    with sole_writer(destination):
        left = [(path, name) for _, path, name in files if not _same(path, destination / name)]
        total = sum(path.stat().st_size for path, _ in left)
        check_free(destination, total // 1_000_000)
        with progress(total, "exported", "B", scaled=True) as bar:
            for path, name in left:
                _copy(path, destination / name)
                bar.update(path.stat().st_size)
        for _, path, name in files:
            add_sum(destination, name, sha256(path))
    print(
        f"{len(files)} files in {destination}, {len(left)} of them copied now: take it along and"
        " use it with --weights-dir or LASR_WEIGHTS;"
        f" `sha256sum --check {SUMS}` in it finds a bad copy"
    )


def _same(path: Path, target: Path) -> bool:
    return target.is_file() and sha256(target) == sha256(path)


def _copy(path: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
        if not _same(path, temporary):
            raise WeightsError(f"{target}: the copy differs from {path}; the disk may be failing")
