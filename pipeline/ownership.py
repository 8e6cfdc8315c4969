"""Only what a build wrote itself is ever replaced; known by a mark inside, not by its name."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.errors import UserError
from pipeline.storage import Place, reported
from schemas.catalogue import beside
from schemas.parquet import METADATA_KEY

_CARD_MARK = "\n# LA-SR patches: "  # the title of every data card
_WORK_NAME = re.compile(
    r"lock|kept|publishing|\..*\.tmp|(part|shard)-[0-9a-f]{16}(\.images)?\.parquet"
)


def check_outputs(out: Place, work: Place, inputs: Iterable[str]) -> None:
    """Refuse to build into what is not a build's own, before any work is done.

    out: the manifest. work: its folder of parts. inputs: what the user named as photographs.
    Raises UserError: no usable name, a file or link in the manifest's place, a foreign file in a
    folder that would be replaced, an output that is, holds or lies inside an input.
    """
    _check_name(out)
    if out.is_local:
        for given in inputs:
            for mine in (out, work):
                _check_apart(Path(mine.uri), Path(given))
        if out.path.is_symlink():
            raise _refused(out, "is a link; name the folder that it leads to")
        if out.path.is_file():
            raise _refused(out, "is a file, and a build writes a folder")
    with reported(out, "read"):
        names = out.names()
        with ThreadPoolExecutor(8) as executor:
            ours = executor.map(lambda name: is_marked(out / name), names)
            for name, own in zip(names, ours, strict=True):
                if not own:
                    raise _refused(out, f"holds {name}, which no build wrote")
    for name in work.names():
        if not _WORK_NAME.fullmatch(name):
            raise _refused(work, f"holds {name}, which no build wrote")
    check_beside(out)


def check_file(out: Path) -> None:
    """Refuse to replace a file that is not a manifest of this project. Raises UserError."""
    place = Place(str(out))
    _check_name(place)
    if out.is_symlink():
        raise _refused(place, "is a link; name the file that it leads to")
    if out.is_file() and not is_marked(place):
        raise _refused(place, "is a file that this project did not write")
    check_beside(place)


def check_beside(out: Place) -> None:
    """Refuse to replace a foreign file that has the name of one that belongs to the manifest."""
    for name in ("images.parquet", "duplicates.parquet", "card.md"):
        place = out.parent / beside(out.name, name)
        if place.exists() and not is_marked(place):
            raise _refused(place, "is a file that this project did not write")


def is_marked(place: Place) -> bool:
    """Whether a file says that this project wrote it: Parquet metadata, or the title of a card."""
    if place.is_local and (place.path.is_symlink() or not place.path.is_file()):
        return False
    try:
        if place.name.endswith(".md"):
            return _CARD_MARK in place.read_bytes().decode("utf-8", "replace")
        schema = pq.read_schema(place.key, filesystem=place.fs)
        return METADATA_KEY in (schema.metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        # A part that is cut or damaged lost its mark; its name, a digest, is as good a sign.
        return re.fullmatch(r"part-[0-9a-f]{16}(-without)?\.parquet", place.name) is not None


def _check_name(out: Place) -> None:
    last = out.uri.rstrip("/").rsplit("/", 1)[-1]
    in_bucket = not out.is_local and "/" not in out.uri.split("://", 1)[1].strip("/")
    if in_bucket or last in ("", ".", "..") or (out.is_local and out.path.resolve() == Path.cwd()):
        raise UserError(
            f"--out '{out}': names no manifest; give it a name, such as data/patches.parquet"
        )


def _check_apart(out: Path, given: Path) -> None:
    mine, input_ = (Path(os.path.realpath(path)) for path in (out, given))
    if not input_.exists():
        return
    if input_ == mine or mine in input_.parents:
        raise _refused(Place(str(out)), f"is or holds the photographs of {given}")
    if input_.is_dir() and input_ in mine.parents:
        raise _refused(Place(str(out)), f"lies inside {given}, where the photographs are")


def _refused(place: Place, why: str) -> UserError:
    return UserError(f"{place}: {why}; nothing was changed: choose another --out")
