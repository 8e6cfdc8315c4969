"""SIGKILL at any moment, a full disk, a folder that cannot be written, two builds at once."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lasr.errors import UserError
from pipeline.build.lock import check_free, sole_build
from pipeline.config import BuildConfig
from tests.support import killed, processes

NOBODY = 65534


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed.small_album(tmp_path_factory.mktemp("kill") / "album", 3)


def config(album: Path, out: Path, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {"images": [str(album)], "profile": "test", "k": 2, "shard_size": 4}
    plain |= {"dictionary": killed.words(album), "out": out}
    return BuildConfig(**(plain | changes))


def run(config: BuildConfig, prepare: Any = None, errors: Path | None = None) -> int | None:
    process = processes.context().Process(target=killed.child, args=(config, prepare, errors))
    process.start()
    process.join()
    return process.exitcode


def test_kills_at_random(tmp_path: Path) -> None:
    """`python -m tests.support.killed --kills 500` does more of them."""
    ended = killed.torture(tmp_path, kills=8, seed=0)
    assert ended["killed"] == 8 and ended["looks of a reader"] > 8


@pytest.mark.slow
def test_a_kill_at_the_steps_that_change_the_disk(album: Path, tmp_path: Path) -> None:
    """Right before or right after every third of them, on the way from one manifest to another."""
    start, calm, place = tmp_path / "start", tmp_path / "calm", tmp_path / "place"
    assert run(config(album, start / "patches.parquet")) == 0
    assert run(config(album, calm / "patches.parquet", k=3)) == 0
    views = {killed.patch_ids(folder / "patches.parquet") for folder in (start, calm)}
    expected = killed.digest(calm / "patches.parquet")
    for at in range(1, 1000, 3):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(start, place)
        out = place / "patches.parquet"
        ended = run(config(album, out, k=3), killed.Trap(at, after=bool(at % 2)))
        assert killed.patch_ids(out) in views
        if ended == 0:  # the build has fewer steps than that
            break
        assert ended == -signal.SIGKILL
        assert run(config(album, out, k=3)) == 0
        assert killed.digest(out) == expected
        assert not killed.leftovers(place)
    assert at > 30


def test_two_builds_of_one_output(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.parquet"
    with sole_build(config(album, out).work):
        with pytest.raises(UserError, match=rf"being built by process {os.getpid()} on \S+ since"):
            check_free(config(album, out).work)
        assert run(config(album, out)) == killed.REFUSED
    check_free(config(album, out).work)
    assert run(config(album, out)) == 0


def test_a_dead_builder_holds_nothing(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.parquet"
    assert run(config(album, out), killed.Trap(3, after=True)) == -signal.SIGKILL
    assert (tmp_path / "patches.work" / "lock.json").read_bytes()
    check_free(config(album, out).work)


class Full:
    """No file may grow beyond `limit` bytes, as on a disk that is full."""

    def __init__(self, limit: int):
        self.limit = limit

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))


def test_a_full_disk_is_one_line_and_loses_nothing(album: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "patches.parquet", tmp_path / "errors.txt"
    assert run(config(album, out)) == 0
    before = killed.digest(out)
    for limit in (100_000, 3_000):  # no part fits; not even the cache entry of a photograph
        assert run(config(album, out, k=3, shard_size=1), Full(limit), errors) == killed.REFUSED
        error = errors.read_text()
        assert "cannot be written" in error and os.strerror(errno.EFBIG) in error
        assert "run the same command again" in error and "\n" not in error
        assert killed.digest(out) == before
    assert run(config(album, out, k=3)) == 0
    assert not killed.leftovers(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; `mount -o remount,size=…` changes how much fits on it."""
    (disk := tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_full_at_any_moment(album: Path, small_disk: Path, tmp_path: Path) -> None:
    """In the cache, in parts, in the manifest or beside it: one line, and the rest fits later."""
    out, errors = small_disk / "patches.parquet", tmp_path / "errors.txt"
    refused = []
    for size in (48, 128, 256, 400, 600, 800, 1200, 8000):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        if run(config(album, out, shard_size=2), errors=errors) == 0:
            break
        error = errors.read_text()
        assert f"{small_disk}/" in error and "No space left on device; " in error, error
        assert " free)" in error and "free some space and run the same" in error, error
        assert "\n" not in error
        refused.append(error.partition(":")[0])
    calm = tmp_path / "calm" / "patches.parquet"
    assert run(config(album, calm, shard_size=2)) == 0
    assert killed.digest(out) == killed.digest(calm) and not killed.leftovers(small_disk)
    assert len(refused) > 1  # it was full at several moments


class Nobody:
    """Gives up the rights of root, whom no permission stops."""

    def __call__(self) -> None:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)


def test_an_unwritable_folder_is_one_line(album: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        errors, locked = Path(place, "errors.txt"), Path(place, "locked")
        shutil.copytree(album, Path(place, "album"))
        shutil.copy(killed.words(album), place)
        errors.touch()
        errors.chmod(0o666)
        Path(place).chmod(0o755)
        locked.mkdir(0o555)
        build = config(Path(place, "album"), locked / "patches.parquet")
        assert run(build, Nobody(), errors) == killed.REFUSED
        error = errors.read_text()
        assert "cannot be written" in error and str(locked) in error and "\n" not in error
