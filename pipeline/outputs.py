"""What a build may replace or remove, on local disks and in object storage.

`lasr.ownership` has the rules: a file is ours by the mark inside it. A part that a full disk or a
power failure damaged has lost its mark; beside files that bear one, it is known by its name, which
is a digest.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.files import move_aside
from lasr.marks import KEY, has_mark
from lasr.ownership import check_file, check_folder, check_name, contains, is_lock, refused
from pipeline.storage import StoragePath, reported
from schemas.catalogue import BESIDE, beside
from schemas.current import POINTER

log = logging.getLogger(__name__)

_DIGEST = "[0-9a-f]{16}([0-9a-f]{16})?"  # of a shard or an earlier part, and of a part
_PART = re.compile(rf"(part|shard)-{_DIGEST}(-without|\.images)?\.parquet|{re.escape(POINTER)}")
# What a work folder remembers of the last publication: see `pipeline.sidecars`.
_REMEMBERED = re.compile(
    "(images|duplicates)-[0-9a-f]{32}[.]parquet|card-[0-9a-f]{32}[.]md"
    "|near-(photograph|lr|hr)[.]parquet"
)
# Temporary files of a build that was killed; see `scratch` and `StoragePath.write_bytes`.
_TEMPORARY = re.compile(
    rf"\.((part|shard|near)-.*|.*({'|'.join((*BESIDE, POINTER))})\.[0-9a-f]{{8}}"
    r"|[a-z0-9_]{8})\.tmp"
)
_LOCKS, _FOLDERS = ("lock", "lock.json"), ("kept", "publishing")


def check_outputs(
    out: StoragePath, work: StoragePath, inputs: Iterable[str], cache: StoragePath | None = None
) -> None:
    """Refuse to build where files of others would be replaced or removed.

    out: the manifest. work: its work folder. inputs: paths of photographs and models, as the user
    gave them. cache: a folder of cached results outside of `work`.
    Raises UserError: an unusable name, a file or link at `out`, a foreign file in `out`, in `work`
    or beside `out`, or an output that is, contains or is inside an input.
    """
    given = list(inputs)
    for path, flag in ((out, "--out"), (work, "--out"), (cache, "--cache")):
        if path is None:
            continue
        if path.is_local:
            check_folder(path.path, given, flag=flag, of_build=path is not cache)
        else:
            _check_address(path, given, flag)
    if out.is_local and out.path.is_symlink():
        raise refused(out, "is a link; name the folder that it leads to")
    if cache and cache.is_local and out.is_local:
        for path in (out, work):
            if path.path.resolve() in (cache.path.resolve(), *cache.path.resolve().parents):
                raise refused(cache, f"is in {path}, which a build replaces", "--cache")
    check_beside(out, may_be_damaged=True)
    with reported(out, "read"):
        in_out, in_work = _kinds(out, _is_own_part), _kinds(work, _is_own)
        is_known = True in {*in_out.values(), *in_work.values()}
        for folder, kinds in ((out, in_out), (work, in_work)):
            for name, is_own in kinds.items():
                if is_own or (is_own is None and is_known):
                    continue
                raise refused(folder, f"holds {name}, which no build wrote")


def check_beside(out: StoragePath, may_be_damaged: bool = False) -> None:
    """Refuse to replace foreign files with the names of catalogue, duplicates and data card.

    may_be_damaged: whether tables that cannot be read are passed over (see `set_aside`).
    """
    for name in BESIDE:
        path = out.parent / beside(out.name, name)
        if may_be_damaged and _is_damaged_table(path):
            continue
        if path.is_local:
            check_file(path.path)
        elif path.exists() and not is_marked(path):
            raise refused(path, "is a file that LA-SR did not write, or that was edited since")


def is_marked(path: StoragePath) -> bool:
    """Whether this project wrote a file, by its content. Raises OSError."""
    if path.is_local:
        if path.path.is_symlink() or not path.path.is_file():
            return False
        with open(path.path, "rb") as local:
            return has_mark(local)
    try:
        with path.fs.open_input_file(path.key) as remote:
            return has_mark(remote)
    except FileNotFoundError:  # also where the name is that of a folder
        return False


def set_aside(path: StoragePath) -> None:
    """Rename a damaged table, whose mark is lost, so that it is neither in the way nor lost."""
    if not _is_damaged_table(path):
        return
    aside = move_aside(path.path, "damaged")
    log.warning("%s: damaged; written again, and what was there is now %s", path, aside.name)


def _is_damaged_table(path: StoragePath) -> bool:
    """Whether a file is an empty, cut or otherwise unreadable Parquet file."""
    if not (path.is_local and path.name.endswith(".parquet")) or path.path.is_symlink():
        return False
    if not path.path.is_file():
        return False
    content = path.path.read_bytes()
    if not content:
        return True
    ends = [content[:4] == b"PAR1", content[-4:] == b"PAR1"]
    try:
        pq.read_schema(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        return any(ends)
    return not all(ends)


def is_own_manifest(folder: Path) -> bool:
    """Whether a folder holds nothing but parts, some of which may be damaged."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(_is_own_part(StoragePath(str(path))) is not False for path in folder.iterdir())


def remove_own(path: StoragePath) -> None:
    """Remove a part or a leftover of a build; leave anything else as it is. Raises StorageError."""
    with reported(path, "removed"):
        if _is_own(path) is not False:
            path.remove()


def check_found(outputs: Iterable[StoragePath], found: Iterable[StoragePath]) -> None:
    """Refuse a build some of whose photographs are in its own outputs, as links may lead there."""
    inside = {path.path.parent for path in found if path.is_local}
    for output in outputs:
        if output.is_local and output.path.exists():
            for folder in inside:
                if contains(output.path, folder):
                    raise refused(output, f"contains the photographs of {folder}")


def _kinds(
    folder: StoragePath, is_own: Callable[[StoragePath], bool | None]
) -> dict[str, bool | None]:
    """For each name in a manifest or work folder, whether it is ours; None: damaged."""
    names = folder.names()
    with ThreadPoolExecutor(8) as executor:
        return dict(
            zip(names, executor.map(lambda name: is_own(folder / name), names), strict=True)
        )


def _is_own(path: StoragePath) -> bool | None:
    """Whether something in a work folder is ours; None: a part that is damaged."""
    if path.name in _FOLDERS:
        if path.name == "publishing" and path.is_local:
            return is_own_manifest(path.path)
        return not path.is_local or path.path.is_dir()
    if path.name in _LOCKS:
        return _is_lock(path)
    if _TEMPORARY.fullmatch(path.name):
        return not path.is_local or path.path.is_file()
    if _REMEMBERED.fullmatch(path.name):
        is_file = not path.is_local or (path.path.is_file() and not path.path.is_symlink())
        return (is_marked(path) or None) if is_file else False
    if path.is_local and path.path.is_dir() and _PART.fullmatch(path.name):
        return False if any(path.path.iterdir()) else None
    return _is_own_part(path)


def _is_own_part(path: StoragePath) -> bool | None:
    if is_marked(path):
        return True
    if not _PART.fullmatch(path.name) or (path.is_local and not path.path.is_file()):
        return False
    try:
        schema = pq.read_schema(path.key, filesystem=path.fs)
    except (pa.ArrowException, OSError, ValueError):
        return None
    # With our mark at its end, and damage at its start. Without it, sound and of another program.
    return None if KEY.encode() in (schema.metadata or {}) else False


def _is_lock(path: StoragePath) -> bool:
    return (not path.is_local or path.path.is_file()) and is_lock(path.read_bytes())


def _check_address(path: StoragePath, inputs: Iterable[str], flag: str) -> None:
    """Refuse an address that names a bucket, or that is, contains or is inside an input."""
    place = _normal(path.uri)
    if place.startswith(("file://", "local://")):
        raise refused(path, "is on this machine: give its path, without a scheme", flag)
    check_name(place.split("://", 1)[1], flag)
    if "/" not in place.split("://", 1)[1]:
        raise refused(path, "is a whole bucket, and not a name in it", flag)
    for given in inputs:
        if "://" not in given:
            continue
        other = _normal(given)
        if f"{other}/".startswith(f"{place}/"):
            raise refused(path, f"is or contains the input {given}", flag)
        if f"{place}/".startswith(f"{other}/"):
            raise refused(path, f"is inside the input {given}", flag)


def _normal(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{os.path.normpath(rest)}"
