"""Photographs inside tar archives and Parquet files, which are read without unpacking them.

An archive counts as a folder: `cats/1.jpg` in `shards/00.tar` is `shards/00.tar/cats/1.jpg`. A row
of a Parquet file has its number, in eight digits so that names sort as rows do, and the path that
the row records: `train.parquet/00000012/cats/1.jpg`.
"""

import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from lasr.errors import UserError, one_line
from lasr.pictures.formats import by_suffix, is_hidden
from lasr.pictures.recognise import START, recognise
from lasr.pictures.search import HIDDEN, SPECIAL, Passed
from pipeline.inputs.tables import check_photographs, image_column, row_paths, row_reader
from pipeline.storage import StoragePath, read_range, reported

_BUFFER = 1 << 20  # bytes per request, while the headers of a tar in object storage are read
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tar.xz", ".txz", ".tar.zst")
_REPLACED = "replaced by a later file of the same name in a tar"


@dataclass(frozen=True, order=True)
class Member:
    """Where a photograph is in an archive.

    at: the offset of its first byte in a tar, or the number of its row in a Parquet file. column:
    of a Parquet file; empty for a tar.
    """

    name: str
    at: int
    column: str = ""


def is_archive(name: str) -> bool:
    """Whether a file is an archive whose photographs can be read, by its name."""
    return name.lower().endswith((".tar", ".parquet"))


def refuse_compressed(name: str) -> None:
    """Raise UserError for a compressed tar, which can only be read from its beginning."""
    if name.lower().endswith(_COMPRESSED):
        raise UserError(
            f"{name}: a compressed archive, whose photographs cannot be read one by one",
            "decompress it to a .tar, for example with `gunzip --keep`",
        )


def members(path: StoragePath, passed: Passed) -> list[tuple[Member, int]]:
    """The photographs of an archive with their sizes in bytes; 0: unknown until one is read.

    No photograph is read. Files that are none are counted in `passed`. Raises UserError: a manifest
    of patches, a Parquet file without a column of pictures; StorageError: cannot be read, damaged.
    """
    with reported(path, "read"):
        if path.name.lower().endswith(".parquet"):
            check_photographs(path)
            column = image_column(path)
            rows = enumerate(row_paths(path, column))
            return [(Member(_row_name(row, text), row, column), 0) for row, text in rows]
        found = dict[str, tuple[Member, int]]()
        for member, size in _tar(path, passed):
            if member.name in found:  # as when it is unpacked, the last one counts
                passed.add(_REPLACED, f"{path}/{member.name}")
            found[member.name] = (member, size)
        return list(found.values())


def read_member(path: StoragePath, member: Member, size: int, modified: int) -> bytes:
    """The bytes of a photograph. Raises OSError.

    modified: of the archive; a file that changed is opened again.
    """
    if member.column:
        return row_reader(path, member.column, modified).read(member.at)
    content = read_range(path, member.at, size)
    if len(content) < size:
        raise OSError(f"the archive ends inside it, {size - len(content)} bytes early")
    return content


def _row_name(row: int, path: str | None) -> str:
    number = f"{row:08}"
    return f"{number}/{clean}" if path and (clean := _clean(path)) else number


def _clean(name: str) -> str:
    """A name without `..`, `.` and leading slashes, so that it stays inside its archive."""
    return posixpath.normpath("/" + name.replace("\\", "/")).strip("/")


def _tar(path: StoragePath, passed: Passed) -> Iterator[tuple[Member, int]]:
    with path.open() as opened:
        # In object storage each read would be a request.
        raw: Any = opened
        file: BinaryIO = raw if path.is_local else io.BufferedReader(raw, _BUFFER)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while one := tar.next():
                    tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                    if _is_photograph(one, file, path, passed):
                        yield Member(_clean(one.name), one.offset_data), one.size
                end = tar.offset
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"there is no file's header at byte {end}")
        except tarfile.TarError as error:
            raise OSError(f"damaged, or no tar archive: {one_line(error)}") from error


def _is_photograph(one: tarfile.TarInfo, file: BinaryIO, path: StoragePath, passed: Passed) -> bool:
    """Whether a file in a tar may be a photograph, by the rules for files in folders."""
    where = f"{path}/{one.name}"
    if one.isdir():
        return False
    if any(is_hidden(part) for part in one.name.split("/") if part not in ("", ".", "..")):
        passed.add(HIDDEN, where)
        return False
    if not one.isreg() or one.issparse():
        passed.add(SPECIAL, where)
        return False
    kind = by_suffix(posixpath.basename(one.name))
    if kind is None:
        file.seek(one.offset_data)
        kind = recognise(io.BytesIO(file.read(min(START, one.size))))
    if kind is None or not kind.is_picture:
        passed.add(posixpath.splitext(one.name)[1].lower() or "without suffix", where)
        return False
    return True
