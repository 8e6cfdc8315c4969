"""The zip archives of `torch.save`: what they declare, their checksums, and a digest of our own.

PyTorch's reader ignores the checksums that its writer stores, and inflates whatever an archive
holds. Neither the sizes nor the bytes of a file are therefore trusted before they were looked at.
"""

import hashlib
import struct
import zipfile
from pathlib import Path

from schemas.digest import BLANK, MARK, Damaged

_END = struct.Struct("<4s4H2LH")  # end of central directory: APPNOTE.TXT of zip, 4.3.16
_BLOCK = 1 << 20
_GROWTH = 4  # weights hardly compress: an archive that grows more is not one of weights
_SLACK = 1 << 20  # bytes: a small archive consists of padding


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_sizes(path: Path) -> None:
    """Read the directory of an archive alone. Raises Damaged: it would inflate beyond measure."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise Damaged(f"its directory cannot be read: {error}") from error
    if declared > _GROWTH * size + _SLACK:
        raise Damaged(f"{size} bytes that would inflate to {declared}")


def add_digest(path: Path) -> None:
    """Store the SHA-256 of a finished archive in its comment, which every reader of zip skips."""
    with path.open("r+b") as file:
        end = file.seek(-_END.size, 2)
        *fields, comment = _END.unpack(file.read(_END.size))
        if fields[0] != b"PK\x05\x06" or comment:
            raise ValueError(f"{path}: is no zip archive without a comment")
        file.seek(end)
        file.write(_END.pack(*fields, len(BLANK)) + BLANK)
    digest = _digest(path)
    with path.open("r+b") as file:
        file.seek(-len(digest), 2)
        file.write(digest)


def check_digest(path: Path) -> None:
    """Check all bytes of an archive: by its digest, or by the checksums of zip if it has none.

    Raises Damaged, OSError.
    """
    with path.open("rb") as file:
        file.seek(-min(len(BLANK), path.stat().st_size), 2)
        tail = file.read()
    if tail.startswith(MARK):
        if tail[len(MARK) :] != _digest(path):
            raise Damaged("its digest does not fit its content")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong, cut = archive.testzip(), archive.comment.startswith(MARK)
    except Exception as error:  # damaged bytes raise nearly anything
        raise Damaged(f"it is no sound archive: {error}") from error
    if cut:
        raise Damaged("its last bytes are missing")
    if wrong:
        raise Damaged(f"the checksum of {wrong} does not fit")


def _digest(path: Path) -> bytes:
    """SHA-256 of a file whose last 64 bytes are a digest, which count as zeros; in hex."""
    digest, left = hashlib.sha256(), path.stat().st_size - 64
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    digest.update(b"0" * 64)
    return digest.hexdigest().encode()
