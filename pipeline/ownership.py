"""Checks before any work: a build replaces only files that a build wrote.

A file of this project is recognised by a mark inside it, not by its name: Parquet metadata, or the
title of a data card.
"""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.errors import UserError
from pipeline.storage import StoragePath, reported
from schemas.catalogue import BESIDE, beside
from schemas.parquet import METADATA_KEY

_CARD_TITLE = "\n# LA-SR patches: "  # of every data card
_DIGEST = "[0-9a-f]{16}"
# Everything that a build writes into its work folder; `kept` is the cache.
_WORK_NAME = re.compile(
    rf"lock(\.json)?|kept|publishing|\..*\.tmp|(part|shard)-{_DIGEST}(\.images)?\.parquet"
)
_PART_NAME = re.compile(rf"part-{_DIGEST}(-without)?\.parquet")


def check_outputs(out: StoragePath, work: StoragePath, inputs: Iterable[str]) -> None:
    """Refuse to build where files of others would be replaced or removed.

    out: the manifest. work: its work folder. inputs: paths of photographs, as the user gave them.
    Raises UserError: an unusable name, a file or link at `out`, a foreign file in `out`, in `work`
    or beside `out`, or an output that is, contains or is inside an input.
    """
    _check_name(out)
    if out.is_local:
        for path in inputs:
            for output in (out, work):
                _check_separate(Path(output.uri), Path(path))
        if out.path.is_symlink():
            raise _refused(out, "is a link; name the folder that it leads to")
        if out.path.is_file():
            raise _refused(out, "is a file, and a build writes a folder")
    with reported(out, "read"):
        names = out.names()
        with ThreadPoolExecutor(8) as executor:
            marked = executor.map(lambda name: is_marked(out / name), names)
            foreign = [name for name, mark in zip(names, marked, strict=True) if not mark]
    if foreign:
        raise _refused(out, f"holds {foreign[0]}, which no build wrote")
    for name in work.names():
        if not _WORK_NAME.fullmatch(name):
            raise _refused(work, f"holds {name}, which no build wrote")
    check_beside(out)


def check_file(out: Path) -> None:
    """Refuse to write a manifest as a single file over one of another program. Raises UserError."""
    path = StoragePath(str(out))
    _check_name(path)
    if out.is_symlink():
        raise _refused(path, "is a link; name the file that it leads to")
    if out.is_file() and not is_marked(path):
        raise _refused(path, "is a file that this project did not write")
    check_beside(path)


def check_beside(out: StoragePath) -> None:
    """Refuse to replace foreign files with the names of catalogue, duplicates and data card."""
    for name in BESIDE:
        path = out.parent / beside(out.name, name)
        if path.exists() and not is_marked(path):
            raise _refused(path, "is a file that this project did not write")


def is_marked(path: StoragePath) -> bool:
    """Whether this project wrote a file, by its Parquet metadata or the title of a card.

    A damaged part has lost its metadata; it is recognised by its name, which is a digest.
    """
    if path.is_local and (path.path.is_symlink() or not path.path.is_file()):
        return False
    try:
        if path.name.endswith(".md"):
            return _CARD_TITLE in path.read_bytes().decode("utf-8", "replace")
        schema = pq.read_schema(path.key, filesystem=path.fs)
        return METADATA_KEY in (schema.metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return _PART_NAME.fullmatch(path.name) is not None


def _check_name(out: StoragePath) -> None:
    last = out.uri.rstrip("/").rsplit("/", 1)[-1]
    is_bucket = not out.is_local and "/" not in out.uri.split("://", 1)[1].strip("/")
    is_current = out.is_local and out.path.resolve() == Path.cwd()
    if is_bucket or is_current or last in ("", ".", ".."):
        raise UserError(
            f"--out '{out}': does not name a manifest", "give a name such as data/patches.parquet"
        )


def _check_separate(output: Path, path: Path) -> None:
    resolved, input_ = (Path(os.path.realpath(each)) for each in (output, path))
    if not input_.exists():
        return
    if input_ == resolved or resolved in input_.parents:
        raise _refused(StoragePath(str(output)), f"is or contains the photographs of {path}")
    if input_.is_dir() and input_ in resolved.parents:
        raise _refused(StoragePath(str(output)), f"is inside {path}, where the photographs are")


def _refused(path: StoragePath, why: str) -> UserError:
    return UserError(f"{path}: {why}; nothing was changed", "choose another --out")
