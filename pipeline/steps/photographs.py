"""Photographs one after the other: found and read as by a build; a bad one stops no other."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lasr.cli import progress
from lasr.device import ahead
from lasr.errors import UserError, note_traceback
from lasr.ownership import check_folder
from lasr.pictures.search import expand_lists
from lasr.pictures.write import result_paths
from pipeline.inputs.photographs import Found, find_all
from pipeline.stages import images
from pipeline.stages.images import Photograph, Unusable
from pipeline.steps.config import StepConfig

log = logging.getLogger(__name__)


def find(config: StepConfig) -> list[Found]:
    """The photographs that the command is given. Raises UserError: none, or out of reach."""
    photographs = find_all(config.pictures)
    for path, reason in photographs.unreachable.items():
        raise UserError(f"{path}: {reason}", "check the path")
    photographs.check_any(config.pictures)
    return photographs.found


def find_with_results(
    config: StepConfig, out: Path, endings: Sequence[tuple[str, str]]
) -> dict[Found, list[Path]]:
    """The photographs, and where their results go below `out`: one path for each ending.

    endings: suffix of the name, and format. Raises UserError: as `find`, or `out` or a result is
    not ours to replace.
    """
    inputs = list(expand_lists(config.pictures))
    check_folder(out, inputs)
    found = {one: Path(one.name) for one in find(config)}
    paths = [result_paths(found, out, format, suffix) for suffix, format in endings]
    check_folder(out, inputs, [path for each in paths for path in each.values()])
    return {one: [each[one] for each in paths] for one in found}


@dataclass
class Failures:
    """The photographs that failed, with the reasons."""

    total: int
    reasons: list[str] = field(default_factory=list)

    def report(self) -> None:
        """Raise UserError if there are any."""
        if self.reasons:
            count = f"{len(self.reasons)} of {self.total} pictures failed"
            raise UserError(f"{count}: {'. '.join(self.reasons)}")


def for_each(
    found: Sequence[Found],
    config: StepConfig,
    min_side: int,
    do: Callable[[Photograph], object],
    quiet: bool = False,
) -> Failures:
    """Read each photograph, the next one meanwhile, and do something with it.

    quiet: no progress bar. Raises UserError if `do` does: it concerns all photographs.
    """
    failures = Failures(len(found))

    def read() -> Iterator[tuple[Found, Photograph | Unusable]]:
        for one in found:
            try:
                yield one, images.load(one, min_side, config.max_pixels)
            except Unusable as why:
                yield one, why

    with progress(len(found), "pictures", "img", quiet=quiet) as bar, ahead(read(), 1) as stream:
        for one, photograph in stream:
            bar.set_postfix_str(one.name, refresh=False)
            try:
                if isinstance(photograph, Unusable):
                    raise photograph
                do(photograph)
            except Unusable as why:
                failures.reasons.append(f"{one.path}: {why.reason}")
            except UserError:
                raise
            except Exception as error:
                failures.reasons.append(f"{one.path}: {type(error).__name__}: {error}")
                note_traceback(log, error)
            bar.update()
    return failures
