"""What the tests of Ray and of Prefect share: photographs, the rows of one machine, comparing."""

import time
from pathlib import Path
from typing import Any, Protocol

import pyarrow.dataset as ds
from PIL import Image

from pipeline.config import BuildConfig
from tests.cluster.hosts import Process
from tests.conftest import run_stages

PHOTOGRAPHS, PARTS = 12, 6
Rows = list[dict[str, Any]]


class Builder(Protocol):
    """Machines that build manifests, each under a name."""

    def build(self, name: str) -> Process:
        """Ask for a build, or again for one that failed."""

    def failed(self, name: str, build: Process) -> None:
        """Check what is said of a build that failed, and print it."""

    def rows(self, name: str) -> Rows:
        """The rows of a finished build."""


def make_album(photographs: Path, folder: Path, width: int, height: int) -> Path:
    """A dozen photographs, large enough that a part takes seconds; no two are equal."""
    album = folder / "album"
    album.mkdir()
    kept = sorted(photographs.iterdir())
    for number in range(PHOTOGRAPHS):
        with Image.open(kept[number % len(kept)]) as picture:
            size = (width + 20 * number, height)
            picture.convert("RGB").resize(size).save(album / f"{number:02}.jpg", quality=80)
    return album


def rows(manifest: Path) -> Rows:
    found: Rows = ds.dataset(manifest).to_table().to_pylist()
    return sorted(found, key=lambda row: str(row["patch_id"]))


def rows_of_one_machine(album: Path, **parameters: Any) -> Rows:
    """Build beside an album, in this process."""
    out, shard = album.parent / "patches.parquet", PHOTOGRAPHS // PARTS
    plain: dict[str, Any] = {"profile": "test", "k": 2, "shard_size": shard}
    run_stages(BuildConfig(images=[str(album)], out=out, **plain | parameters))
    return rows(out)


def same(builder: Builder, name: str, build: Process, expected: Rows, seconds: float) -> None:
    """It ends with the rows of one machine."""
    assert build.wait(seconds) == 0, build.text
    assert builder.rows(name) == expected


def same_or_one_line(builder: Builder, name: str, build: Process, expected: Rows) -> None:
    """It ends with the rows of one machine, or with a line, and then the same command does."""
    began = time.monotonic()
    status = build.wait(900)
    print(f"{name}: status {status} after {time.monotonic() - began:.0f} s")
    if status:
        builder.failed(name, build)
        build = builder.build(name)
    same(builder, name, build, expected, 600)
