"""Which files make up a manifest now: an empty part that names them.

`version.parquet` in a manifest's folder has the columns of the parts and no row. In its metadata it
names the parts of one publication and the catalogue, near-duplicates and data card that belong to
them, so that who follows it never combines two publications: a folder in object storage is not
exchanged in one step, this file is. Whoever does not follow it reads a part without rows. (A file
of another kind would not do: polars reads a folder only if all names in it end alike.)

Manifests of earlier versions, of SQL and in a single file have none.
"""

import io
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.digest import BinaryFile, Damaged, parquet_digest
from schemas.parquet import table_writer

POINTER = "version.parquet"  # behind all parts in the order of names
_KEY = b"la-sr.current"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Current:
    """One publication of a manifest.

    files: the parts, with their states when they were published. beside: for each name of
    `schemas.catalogue.BESIDE` the file in the work folder that has this content, whose name ends in
    a digest. Only builds use the others. former: what `beside` was before. made_from: a fingerprint
    of the build's parts and parameters. copies: for a part of which some rows are left out, and
    which ones, the file of the others.
    """

    files: dict[str, list[int]]
    beside: dict[str, str] = field(default_factory=dict)
    former: list[str] = field(default_factory=list)
    made_from: str = ""
    copies: dict[str, str] = field(default_factory=dict)


def is_part(name: str) -> bool:
    """Whether a file in a manifest's folder holds rows of it, by its name.

    Readers of Parquet folders skip names that begin with a dot or an underscore.
    """
    return name.endswith(".parquet") and not name.startswith((".", "_")) and name != POINTER


def write_current(path: Path, schema: pa.Schema, current: Current) -> None:
    """Write the file. schema: of the parts, with their metadata."""
    with table_writer(path, schema, lambda: {_KEY.decode(): json.dumps(asdict(current))}):
        pass


def read_current(file: BinaryFile) -> Current:
    """What a file of that name says. Raises Damaged, OSError."""
    content = file.read()
    digest = parquet_digest(io.BytesIO(content))
    try:
        about = (pq.read_metadata(pa.BufferReader(content)).metadata or {})[_KEY]
        if digest is None:
            raise ValueError("it has no digest")
        return Current(**json.loads(about))
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise Damaged(f"it does not say which files are current: {error}") from error


def current_files(folder: Path) -> tuple[tuple[Path, ...], Current | None]:
    """The parts in a folder on a local disk, sorted, and what says that these are current, if any.

    Parts that it does not name are passed over with a warning: a copy of object storage may hold
    those of two publications. So is one that it names and somebody took away. Raises OSError.
    """
    while True:
        current = _read(folder)
        found = {path.name for path in folder.glob("*.parquet") if is_part(path.name)}
        wanted = set(found if current is None else current.files)
        if _read(folder) == current:  # else the folder was exchanged while it was read
            break
    for about, names in (
        ("not among its current parts, passed over", found - wanted),
        ("a build made parts of it that are not there", wanted - found),
    ):
        if names:
            log.warning("%s: %s: %s", folder, about, ", ".join(sorted(names)))
    return tuple(folder / name for name in sorted(found & wanted)), current


def _read(folder: Path) -> Current | None:
    path = folder / POINTER
    try:
        with open(path, "rb") as file:
            return read_current(file)
    except FileNotFoundError:
        return None
    except Damaged as error:  # on a disk, the folder alone says which parts are current
        log.warning("%s: damaged (%s); the next build writes it again", path, error)
        return None
