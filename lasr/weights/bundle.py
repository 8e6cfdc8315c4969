"""Verify the weights on this machine, and export them into one folder to copy elsewhere."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from lasr.cli import progress
from lasr.files import atomic_path
from lasr.ownership import check_folder, refused
from lasr.terminal.output import say
from lasr.terminal.summary import counted
from lasr.weights.digests import SUMS, add_sums, format_problem, read_sums, sha256
from lasr.weights.fetch import check_free, check_lock, owners, write_lock
from lasr.weights.locate import (
    WeightsError,
    check_here,
    differs,
    fetch_command,
    found,
    weights_folder,
)
from lasr.weights.registry import METRICS, TABLE, File, Weights


def verify(entries: list[Weights] | None) -> None:
    """Compare every file with the published and the recorded digest, and print one line for each.

    entries: None for everything on this machine. Raises WeightsError with the number of defects.
    """
    folder = weights_folder()
    files = [
        each for weights in _chosen(entries) for each in found(weights) or _partly(folder, weights)
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
            f"{counted(defects, 'defective file')} of {len(files)}, see above",
            "remove them and run `lasr weights fetch` with their names",
        )
    are = "is" if len(files) == 1 else "are"
    checked = counted(len(files), "file")
    say(f"{checked} {are} as published, or as recorded by fetch; folder: {folder}")


def _chosen(entries: list[Weights] | None) -> list[Weights]:
    """The entries, none of which may be missing; the whole table for None."""
    if entries is None:
        return list(TABLE.values())
    check_here(entries)
    return entries


def _partly(folder: Path, weights: Weights) -> list[tuple[File, Path]]:
    """All files of an entry if some exist; empty if none does."""
    named = [(file, folder / weights.name / file.name) for file in weights.files]
    return named if any(path.is_file() for _, path in named) else []


def problem_of(file: File, path: Path) -> str:
    """What is wrong with a file; "" if nothing is."""
    if not path.is_file():
        return "is missing"
    try:
        problems = differs(file, path), format_problem(path, path.suffix)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "; ".join(filter(None, problems))


def export(destination: Path, entries: list[Weights] | None) -> None:
    """Copy weights into one folder, with SHA256SUMS, for use with `--weights-dir`.

    entries: None for everything on this machine, the weights of metrics included. Files that
    `destination` already holds are not copied again.

    Raises:
        WeightsError: missing or defective weights, a full disk, or a `destination` that is not
            empty and not an earlier export.
    """
    folder = weights_folder()
    if os.path.realpath(destination) == os.path.realpath(folder):
        raise WeightsError(
            f"{destination}: is the folder that weights are taken from", "choose another folder"
        )
    check_folder(destination, [folder], flag="folder")
    _check_ours(destination)
    with ExitStack() as stack:
        _export(destination, _files_to_export(folder, entries, stack))


def _export(destination: Path, files: dict[str, Path]) -> None:
    """Copy files into a folder under their names there, and record them."""
    recorded = read_sums(destination)
    for name in files:
        if os.path.lexists(destination / name) and name not in recorded:
            raise refused(destination / name, f"is not in {SUMS}, so no export wrote it", "folder")
    with write_lock(destination):
        # Before the copies: it marks the folder as ours, so that a rerun after a kill continues.
        add_sums(destination, {name: sha256(path) for name, path in files.items()})
        to_copy = {n: path for n, path in files.items() if not _same(path, destination / n)}
        total = sum(path.stat().st_size for path in to_copy.values())
        check_free(destination, total // 1_000_000)
        with progress(total, "exported", "B", scaled=True) as bar:
            for name, path in to_copy.items():
                _copy(path, destination / name)
                bar.update(path.stat().st_size)
    say(
        f"{counted(len(files), 'file')} in {destination}, {len(to_copy)} of them copied now:"
        " use the folder with --weights-dir or LASR_WEIGHTS;"
        f" `sha256sum --check {SUMS}` in it finds a bad copy"
    )


def _check_ours(destination: Path) -> None:
    """Raise WeightsError unless a folder is new, empty, or an earlier export or fetch."""
    check_lock(destination)
    ignored = {".lock", f".{SUMS}.tmp"}  # of an export that was killed at its start
    if not destination.is_dir() or {path.name for path in destination.iterdir()} <= ignored:
        return
    if not owners(destination):
        raise WeightsError(
            f"{destination}: is not empty and holds no exported weights ({SUMS})",
            "choose a new folder",
        )


def _files_to_export(
    folder: Path, entries: list[Weights] | None, stack: ExitStack
) -> dict[str, Path]:
    """Name in the export -> file, each verified. Raises WeightsError: a defective file, or none.

    stack: holds the temporary folders of what is put together from packages.
    """
    files: dict[str, tuple[File, Path]] = {}
    for weights in _chosen(entries):
        here = found(weights)
        if here and weights.parts and not here[0][1].is_relative_to(folder):
            from lasr.weights.small.towers import by_name, write_folder  # loads PyTorch

            _check_parts(here)
            made = Path(stack.enter_context(TemporaryDirectory()))
            write_folder(by_name(path for _, path in here), made)
            here = [(file, made / file.name) for file in weights.files]
        files |= {f"{weights.name}/{file.name}": (file, path) for file, path in here}
    if entries is None:
        others = [path for path in sorted((folder / METRICS).rglob("*")) if path.is_file()]
        files |= {p.relative_to(folder).as_posix(): (File(p.name), p) for p in others}
    if not files:
        raise WeightsError(
            f"{folder}: no weights to export", f"run `{fetch_command(['default'])}` first"
        )
    for file, path in files.values():
        if problem := problem_of(file, path):
            raise WeightsError(
                f"{path}: {problem}; nothing was exported", "remove the file and fetch it again"
            )
    return {name: path for name, (_, path) in files.items()}


def _check_parts(parts: list[tuple[File, Path]]) -> None:
    for file, path in parts:
        if problem := problem_of(file, path):
            raise WeightsError(f"{path}: {problem}; nothing was exported", "reinstall its package")


def _same(path: Path, target: Path) -> bool:
    return target.is_file() and sha256(target) == sha256(path)


def _copy(path: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
        if not _same(path, temporary):
            raise WeightsError(
                f"{target}: the copy differs from {path}", "the disk may be failing: use another"
            )
