"""Damage on disk, made on purpose."""

import os
import random
from collections.abc import Iterator
from pathlib import Path


def flip(content: bytes, bit: int) -> bytes:
    """The content with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flips(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Copies of the content with one bit changed: at random, and in its first and last bytes."""
    rng = random.Random(seed)
    bits = [rng.randrange(8 * len(content)) for _ in range(number)]
    for bit in [0, 77, 8 * len(content) - 1, 8 * len(content) - 700, *bits]:
        yield flip(content, bit)


def spoil(path: Path, how: str) -> None:
    """Damage a file in place; `silent flip` leaves its time of change as it was."""
    state, content = path.stat(), path.read_bytes()
    path.unlink()  # a hard link to it keeps its bytes
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        cut = {"empty": b"", "cut": content[: len(content) // 2]}
        path.write_bytes(cut.get(how, flip(content, len(content) // 3 * 8)))
    if how == "silent flip":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
