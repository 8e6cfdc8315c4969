"""The files of a manifest: on a disk, or in storage that is read by ranges of bytes."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any, Protocol

from schemas.digest import BinaryFile, parquet_digest


class RemoteFile(Protocol):
    """A file in storage; `lasr.storage` has it. Its text is its address."""

    @property
    def name(self) -> str:
        """The last component of its address."""

    @property
    def size(self) -> int:
        """Bytes."""

    def open(self) -> Any:
        """Open it for reading; what was not fetched before is fetched as it is read."""

    def sha256(self) -> str:
        """64 hex digits of all its bytes."""


PartFile = Path | RemoteFile


def open_part(file: PartFile) -> contextlib.AbstractContextManager[BinaryFile]:
    """Open a file for reading. Raises OSError."""
    if isinstance(file, Path):
        return open(file, "rb")
    opened: contextlib.AbstractContextManager[BinaryFile] = file.open()
    return opened


def readable(file: PartFile) -> Any:
    """What pyarrow's readers take for a file."""
    return file if isinstance(file, Path) else file.open()


def size_of(file: PartFile) -> int:
    """Bytes. Raises OSError."""
    return file.stat().st_size if isinstance(file, Path) else file.size


def content_digest(file: PartFile) -> str:
    """The digest of a file, which it holds, or the SHA-256 of all its bytes.

    Raises Damaged, OSError.
    """
    with open_part(file) as content:
        if digest := parquet_digest(content):
            return digest.content
    if isinstance(file, Path):
        with open(file, "rb") as whole:
            return hashlib.file_digest(whole, "sha256").hexdigest()
    return file.sha256()
