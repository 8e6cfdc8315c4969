"""Integrity of files: digests, their record SHA256SUMS (for `sha256sum --check`), and formats."""

import functools
import hashlib
import json
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from lasr.errors import UserError, one_line
from lasr.files import read_text, write_bytes

SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    """The file's digest, 64 hex digits. Read once per process unless size or time change.

    Raises OSError, and UserError: a named pipe or a device, which might never end.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path}: not a regular file", "leave it out of the inputs")
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined(files: list[Path]) -> str:
    """First 12 hex digits of the sha256 over the digests of the files, in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256(file)) for file in files)).hexdigest()[:12]


def read_sums(folder: Path) -> dict[str, str]:
    """The record of `folder`: path below it -> sha256; empty if there is none.

    Raises UserError: unreadable, a malformed line, or a path that leads out of the folder.
    """
    path = folder / SUMS
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}", "remove the file") from error
    sums = {}
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        relative = PurePosixPath(name)
        if len(digest) != 64 or not name or relative.is_absolute() or ".." in relative.parts:
            raise UserError(
                f"{path}: line {number} is not a sha256 and a path below this folder",
                "remove the file, or copy the folder again",
            )
        sums[name] = digest
    return sums


def add_sums(folder: Path, digests: Mapping[str, str]) -> None:
    """Record digests of files below `folder`, atomically. The caller holds the folder's lock."""
    sums = read_sums(folder) | dict(digests)
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_bytes(folder / SUMS, text.encode())


def format_problem(path: Path, suffix: str) -> str:
    """What is wrong with the format that `suffix` promises; "" if nothing is. Runs no code.

    Finds a truncated safetensors file or zip, and a web page in place of a file. An old .pth is a
    plain pickle, for which only a digest tells.
    """
    with path.open("rb") as file:
        start = file.read(2)
    try:
        if suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                pass
        elif suffix in (".pth", ".pt", ".ckpt") and start != b"\x80\x02":
            zipfile.ZipFile(path).close()  # reads the directory at the end of the file
    except (ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return f"truncated, or no {suffix} file ({one_line(error)})"
    return ""
