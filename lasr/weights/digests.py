"""Digests of files, and the record of them: SHA256SUMS, which `sha256sum --check` reads too."""

import functools
import hashlib
from pathlib import Path, PurePosixPath

from lasr.errors import UserError
from lasr.files import write_bytes

SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    """Of a file's bytes, 64 hex digits; gigabytes are read once a process while they stay."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined(files: list[Path]) -> str:
    """First 12 hex digits of the sha256 over the digests of the files, in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256(file)) for file in files)).hexdigest()[:12]


def read_sums(folder: Path) -> dict[str, str]:
    """What `folder` records: path below it -> sha256; empty where there is no record.

    Raises UserError: a line that is none, or a path that leads out of the folder.
    """
    try:
        lines = (folder / SUMS).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / SUMS}: cannot be read: {error}") from error
    sums = {}
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        path = PurePosixPath(name)
        if len(digest) != 64 or not name or path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{folder / SUMS}: line {number} is not a sha256 and a path below this folder;"
                " remove the file, or copy the folder anew"
            )
        sums[name] = digest
    return sums


def add_sum(folder: Path, name: str, digest: str) -> None:
    """Record the digest of `folder`/`name`, atomically; one process at a time."""
    sums = read_sums(folder) | {name: digest}
    text = "".join(f"{sums[each]}  {each}\n" for each in sorted(sums))
    write_bytes(folder / SUMS, text.encode())
