"""Files and folders survive a loss of power: content before names, names before what follows."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lasr.files import atomic_path, replace_folder, write_bytes
from pipeline.storage import StoragePath, scratch
from trainer import checkpoint

Write = Callable[[Path], object]


def take(path: Path) -> None:
    """As a part is written."""
    with scratch(StoragePath(str(path.parent)), "new") as temporary:
        temporary.write_bytes(b"rows")
        StoragePath(str(path)).take(temporary)


def replace(path: Path) -> None:
    """As a file with a mark is replaced."""
    with atomic_path(path, lambda _: True) as temporary:
        temporary.write_bytes(b"new")


def publish(path: Path) -> None:
    """As a manifest is."""
    new = path.with_name("new")
    new.mkdir()
    (new / "part.parquet").write_bytes(b"rows")
    replace_folder(new, path, lambda _: True)


def save(path: Path) -> None:
    """As a checkpoint is."""
    checkpoint.save(path.parent, 1, sr={})


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda path: write_bytes(path, b"new"), "file"),
        (replace, "file"),
        (take, "part.parquet"),
        (publish, "patches.parquet"),
        (save, checkpoint.NAME),
    ],
    ids=["write_bytes", "atomic_path", "take", "replace_folder", "checkpoint"],
)
def test_a_new_file_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    write: Write, name: str, existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / name, os.fsync
    if existed:
        write(path)
    made_durable: list[tuple[int, int]] = []  # what, and what had the name at that moment

    def fsync(descriptor: int) -> None:
        named = path.stat().st_ino if path.exists() else 0
        made_durable.append((os.fstat(descriptor).st_ino, named))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(path)
    new, folder = path.stat().st_ino, tmp_path.stat().st_ino
    content = [number for number, (what, _) in enumerate(made_durable) if what == new]
    names = [number for number, pair in enumerate(made_durable) if pair == (folder, new)]
    assert content and names and made_durable[content[0]][1] != new
