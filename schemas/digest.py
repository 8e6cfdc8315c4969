"""Digests inside files: a changed bit is noticed on use, and a name can say a file's content.

A file carries the SHA-256 of its own bytes: 64 hex digits after MARK, which count as zeros while
the digest is computed. SHA-256, because processors compute it in hardware, several times as fast as
BLAKE2b.

A Parquet file has two levels. Its footer holds a digest of each row group, and the digest of the
file is that of the footer: a reader checks the footer when it opens the file and a row group when
it reads it, and the one number stands for all bytes of the file.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

MARK = b"la-sr sha256 "
BLANK = MARK + b"0" * 64
DIGEST_KEY = "la-sr.digest"  # of the footer's metadata

_BLOCK = 1 << 20
_GROUP = re.compile(rb" ([0-9a-f]{16}) ([0-9a-f]{32})")  # first byte and digest of a row group
# A key and its value in the footer's encoding (Thrift's compact protocol): b"\x18" and a length
# precede the value. No text of a user can hold it, because JSON escapes control characters.
_STORED = re.compile(
    DIGEST_KEY.encode()
    + rb"\x18[\x80-\xff]*[\x00-\x7f]"
    + MARK
    + rb"(.{64}) groups((?: .{16} .{32})+)",
    re.DOTALL,
)


class Damaged(ValueError):
    """A file whose bytes are not those that were written; the message says what is wrong."""


class BinaryFile(Protocol):
    """A file of Python or of pyarrow, opened for reading."""

    def seek(self, offset: int, whence: int = 0, /) -> Any:
        """Move to a byte."""

    def tell(self) -> int:
        """The number of the current byte."""

    def read(self, size: int = -1, /) -> bytes:
        """Read bytes."""


def with_digest(content: bytes) -> bytes:
    """Replace the last BLANK in `content` by the digest."""
    at = content.rindex(BLANK) + len(MARK)
    return content[:at] + _sha256_but(content, at) + content[at + 64 :]


def is_intact(content: bytes) -> bool | None:
    """Whether the digest in `content` fits it; None: it has none, as in earlier versions."""
    at = content.rfind(MARK)
    if at < 0:
        return None
    at += len(MARK)
    return content[at : at + 64] == _sha256_but(content, at)


@dataclass(frozen=True)
class ParquetDigest:
    """The digests in a Parquet file, whose footer was checked."""

    content: str  # 64 hex digits that stand for the whole file
    groups: tuple[tuple[int, int, str], ...]  # first byte, byte after the last, digest

    def check_group(self, file: BinaryFile, index: int) -> None:
        """Read the bytes of a row group. Raises Damaged."""
        start, stop, digest = self.groups[index]
        if _sha256_range(file, start, stop) != digest:
            raise Damaged(f"row group {index} has changed")

    def check(self, file: BinaryFile) -> None:
        """Read all row groups. Raises Damaged."""
        for index in range(len(self.groups)):
            self.check_group(file, index)


def parquet_digest(file: BinaryFile) -> ParquetDigest | None:
    """Check the footer of a Parquet file and return its digests; None if it has none.

    Reads the footer only. Raises Damaged.
    """
    start, footer = _footer(file)
    found = _STORED.search(footer)
    if found is None:
        return None
    stored, groups = found[1], found[2]
    if stored != _sha256_but(footer, found.start(1)):
        raise Damaged("its footer has changed")
    starts = [(int(first, 16), digest.decode()) for first, digest in _GROUP.findall(groups)]
    ends = [first for first, _ in starts[1:]] + [start]
    return ParquetDigest(
        stored.decode(),
        tuple((a, b, digest) for (a, digest), b in zip(starts, ends, strict=True)),
    )


def check_parquet(path: Path) -> str | None:
    """Check all bytes of a Parquet file; returns its digest, or None. Raises Damaged, OSError."""
    with open(path, "rb") as file:
        if digest := parquet_digest(file):
            digest.check(file)
            return digest.content
    return None


def blank_digest(groups: int) -> dict[str, str]:
    """The metadata that a Parquet file of `groups` row groups needs for `add_parquet_digest`."""
    one = f" {'0' * 16} {'0' * 32}"  # a file without row groups counts as one
    return {DIGEST_KEY: f"{BLANK.decode()} groups{one * max(groups, 1)}"}


def add_parquet_digest(path: Path) -> str:
    """Write the digests into a finished Parquet file with a `blank_digest`; returns the file's."""
    footer_of = pq.read_metadata(path)
    firsts = [footer_of.row_group(i).column(0) for i in range(footer_of.num_row_groups)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in firsts]
    starts = [0, *starts[1:]]  # the first range begins with the file
    with open(path, "r+b") as file:
        start, footer = _footer(file)
        found = _STORED.search(footer)
        if found is None:
            raise ValueError(f"{path}: has no blank digest")
        groups = b"".join(
            f" {a:016x} {_sha256_range(file, a, b)}".encode()
            for a, b in zip(starts, [*starts[1:], start], strict=True)
        )
        if len(groups) != len(found[2]):
            raise ValueError(f"{path}: has another number of row groups than its blank digest")
        at, after = found.start(1), found.start(2)
        footer = footer[:after] + groups + footer[found.end(2) :]
        digest = _sha256_but(footer, at)
        file.seek(start)
        file.write(footer[:at] + digest + footer[at + 64 :])
    return digest.decode()


def _footer(file: BinaryFile) -> tuple[int, bytes]:
    """The first byte of the footer, and the footer, without the length that follows it."""
    file.seek(0, 2)
    size = file.tell()
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    start = size - 8 - int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != b"PAR1" or start < 4:
        raise Damaged("it is empty" if not size else "it is cut short, or no Parquet file")
    file.seek(start)
    return start, file.read(size - 8 - start)


def _sha256_but(content: bytes, at: int) -> bytes:
    """The digest of `content` with zeros for the 64 digits from `at` on, in hex."""
    view, digest = memoryview(content), hashlib.sha256()
    for piece in (view[:at], b"0" * 64, view[at + 64 :]):
        digest.update(piece)
    return digest.hexdigest().encode()


def _sha256_range(file: BinaryFile, start: int, stop: int) -> str:
    """32 hex digits of the bytes from `start` to before `stop`."""
    digest = hashlib.sha256()
    file.seek(start)
    while start < stop and (block := file.read(min(_BLOCK, stop - start))):
        digest.update(block)
        start += len(block)
    return digest.hexdigest()[:32]
