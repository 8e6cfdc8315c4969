"""What counts as unchanged, what is done again, and what becomes of rows out of reach."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lasr.errors import UserError
from lasr.pictures import formats
from pipeline.build.plan import Plan, plan_build, prepare
from pipeline.build.publish import finish, renew
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from pipeline.inputs import changes, photographs
from pipeline.stages import images
from pipeline.storage import StoragePath
from pipeline.summary import Summary
from schemas.manifest import open_manifest
from tests.support.words import WORDS

EARLIER = 1_700_000_000


def photo(path: Path, seed: int) -> None:
    """An uncompressed photograph: all have one size, and here one time, too."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (8, 10, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tiles.repeat(32, axis=0).repeat(32, axis=1)).save(path)
    os.utime(path, (EARLIER, EARLIER))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts photographs that are read: decoded, or hashed to compare them."""
    done: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            done[what] += 1
            return original(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(images, "load", "decoded")
    count(changes, "_sha256", "hashed")
    return done


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b", "sub/c")):
        photo(tmp_path / "album" / f"{name}.bmp", number)
    return tmp_path / "album"


class Built:
    """Builds into one manifest."""

    def __init__(self, out: Path):
        self.out = out

    def __call__(self, *folders: Path, **changes: Any) -> Summary:
        parameters = {"k": 1, "profile": "test", "shard_size": 2} | changes
        config = BuildConfig(images=[str(f) for f in folders], out=self.out, **parameters)
        build = plan_build(prepare(config))
        self.plan: Plan = build.plan
        self.text = build.summary()
        self.to_do = build.to_do
        return finish(build, [build_shard(build.job, shard) for shard in build.plan.to_do])

    @property
    def rows(self) -> dict[str, set[str]]:
        """Photograph -> ids of its patches, which depend on its bytes."""
        table = pq.read_table(self.out, columns=["image_path", "patch_id"])
        rows: dict[str, set[str]] = {}
        for row in table.to_pylist():
            rows.setdefault(row["image_path"], set()).add(row["patch_id"])
        return rows

    @property
    def catalogue(self) -> dict[str, dict[str, Any]]:
        table = pq.read_table(self.out.parent / "images.parquet")
        return {row["path"]: row for row in table.to_pylist()}


@pytest.fixture
def build(tmp_path: Path) -> Built:
    return Built(tmp_path / "patches.parquet")


def test_an_unchanged_rerun_reads_nothing(build: Built, album: Path, read: Counter[str]) -> None:
    build(album)
    read.clear()
    build(album)
    assert not build.plan.to_do and not read


@pytest.mark.parametrize("way", ["other folder", "copied over", "renamed over"])
def test_equal_names_sizes_and_times_do_not_hide_other_photographs(
    build: Built, album: Path, tmp_path: Path, way: str
) -> None:
    build(album)
    before = build.rows
    other = tmp_path / "other" / "album"
    for number, name in enumerate(("a", "b", "sub/c")):
        photo(other / f"{name}.bmp", number + 10)
        if way != "other folder":
            move = shutil.copy2 if way == "copied over" else os.replace
            move(other / f"{name}.bmp", album / f"{name}.bmp")
    folder = other if way == "other folder" else album
    assert {(p.name, p.stat().st_size, p.stat().st_mtime) for p in folder.rglob("*.bmp")} == {
        (f"{name}.bmp", (album / "a.bmp").stat().st_size, EARLIER) for name in "abc"
    }
    build(folder)
    fresh = Built(tmp_path / "fresh" / "patches.parquet")
    fresh(folder)
    assert build.rows == fresh.rows
    assert not any(build.rows[name] & before[name] for name in before)


def test_a_new_time_alone_is_a_reason_to_compare(
    build: Built, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system without inodes, and in object storage without ETags."""
    stat = photographs._stat
    monkeypatch.setattr(photographs, "_stat", lambda file: replace(stat(file), identity=""))
    build(album)
    before = build.rows
    photo(album / "a.bmp", 10)
    os.utime(album / "a.bmp", (EARLIER + 1, EARLIER + 1))
    build(album)
    assert build.rows["a.bmp"] != before["a.bmp"] and build.rows["b.bmp"] == before["b.bmp"]


def test_the_same_bytes_elsewhere_are_compared_once_and_not_built(
    build: Built, album: Path, tmp_path: Path, read: Counter[str]
) -> None:
    """A copy on another disk or machine, a touched file, new permissions."""
    build(album)
    before = build.rows
    shutil.copytree(album, tmp_path / "copy")
    (tmp_path / "copy" / "a.bmp").touch()
    read.clear()
    build(tmp_path / "copy")
    assert build.rows == before and not build.plan.to_do and read == {"hashed": 3}
    read.clear()
    build(tmp_path / "copy")
    assert not read  # the new states are recorded
    (tmp_path / "copy" / "a.bmp").chmod(0o600)
    build(tmp_path / "copy")
    assert read == {"hashed": 1} and build.rows == before


def test_verify_reads_everything(build: Built, album: Path, read: Counter[str]) -> None:
    build(album)
    before = build.rows
    state = (album / "a.bmp").stat()
    read.clear()
    build(album, verify=True)
    assert read == {"hashed": 3} and not build.plan.to_do and build.rows == before
    # A change that the file system does not show: the record is of the new file.
    photo(album / "a.bmp", 77)
    assert (album / "a.bmp").stat().st_size == state.st_size
    (part,) = [p for p in build.plan.finished if "a.bmp" in _states(build, p)]
    found = {one.name: one for one in prepare_found(album)}
    work = StoragePath(str(build.out.parent / "patches.work"))
    renew(work, part, StoragePath(str(build.out)), {"a.bmp": found["a.bmp"].state})
    build(album)
    assert build.rows == before
    build(album, verify=True)
    assert build.rows["a.bmp"] != before["a.bmp"] and build.rows["b.bmp"] == before["b.bmp"]


def prepare_found(album: Path) -> list[Any]:
    from pipeline.inputs.photographs import find

    return find([str(album)])


def _states(build: Built, part: str) -> dict[str, Any]:
    from schemas.parquet import decoded_metadata

    path = build.out.parent / "patches.work" / f"{part}.images.parquet"
    states: dict[str, Any] = decoded_metadata(pq.read_schema(path))["states"]
    return states


def test_renamed_photographs_keep_their_patches(
    build: Built, album: Path, read: Counter[str]
) -> None:
    """Also all of them at once, as when the folder that is given changes."""
    build(album)
    before = build.rows
    read.clear()
    os.rename(album / "sub" / "c.bmp", album / "new name.bmp")
    (album / "sub").rmdir()
    assert build(album).gone == 0
    assert read["decoded"] == 0
    expected = before | {"new name.bmp": before["sub/c.bmp"]}
    del expected["sub/c.bmp"]
    assert build.rows == expected
    build(album.parent / "album*")  # the folder before the wildcard
    assert read["decoded"] == 0 and "3 of them keep their patches" in build.text
    assert build.rows == {f"album/{name}": ids for name, ids in expected.items()}
    assert {row["status"] for row in build.catalogue.values()} == {"ok"}
    build(album.parent / "album*")
    assert not build.plan.to_do


def test_a_sibling_folder_changes_no_name(build: Built, album: Path, tmp_path: Path) -> None:
    build(album / "sub")
    before = build.rows
    photo(tmp_path / "sibling" / "c.bmp", 20)
    build(album / "sub", tmp_path / "sibling")
    assert build.to_do == 1 and before.items() <= build.rows.items()
    assert set(build.rows) == {"c.bmp", "sibling/c.bmp"}


def test_photographs_that_are_gone_are_counted(build: Built, album: Path) -> None:
    build(album)
    (album / "a.bmp").unlink()
    (album / "b.bmp").unlink()
    summary = build(album)
    assert summary.gone == 2 and set(build.rows) == {"sub/c.bmp"}
    assert "2 photographs of the earlier build are gone" in str(summary)
    assert "gone: 2 photographs" in build.text
    assert build(album).gone == 0


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    scandir = os.scandir

    def guarded(path: Any = ".") -> Any:
        if not isinstance(path, int) and os.fspath(path).endswith(name):
            raise OSError(5, "Input/output error", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)


def vanish(album: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> str:
    """Make `sub` unreachable, and return what the message names."""
    if way == "refused":
        refuse(monkeypatch, "sub")
    elif way == "empty":
        (album / "sub" / "c.bmp").unlink()
    elif way == "dangling":
        shutil.rmtree(album / "sub")
        (album / "sub").symlink_to(album / "nowhere")
    return str(album / "sub")


@pytest.mark.parametrize("way", ["refused", "empty", "dangling"])
def test_a_folder_that_vanished_stops_the_build_or_keeps_its_rows(
    build: Built, album: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    build(album)
    before = build.rows
    named = vanish(album, monkeypatch, way)
    with pytest.raises(UserError, match=f"{named}: .*--keep-unreachable"):
        build(album)
    assert build.rows == before
    photo(album / "new.bmp", 30)
    summary = build(album, keep_unreachable=True)
    assert summary.kept == 1 and summary.gone == 0 and build.to_do == 1
    assert before.items() <= build.rows.items() and "new.bmp" in build.rows
    assert "1 photograph out of reach; their rows stay" in str(summary)
    assert set(build.catalogue) == set(build.rows)
    words = album.parent / "words.txt"
    words.write_text("\n".join(WORDS[:24]))
    build(album, keep_unreachable=True, dictionary=words)  # needs no pixels
    assert set(build.rows) == {*before, "new.bmp"}
    with pytest.raises(UserError, match=r"c\.bmp: out of reach"):
        build(album, keep_unreachable=True, k=2)
    assert set(build.rows) == {*before, "new.bmp"}


@pytest.mark.parametrize("way", ["empty", "missing"])
def test_a_folder_given_that_vanished(build: Built, album: Path, tmp_path: Path, way: str) -> None:
    photo(tmp_path / "disk" / "d.bmp", 40)
    build(album, tmp_path / "disk")
    before = build.rows
    (tmp_path / "disk" / "d.bmp").unlink()
    (tmp_path / "disk" / "no mount here.txt").touch()  # left below the mount point
    if way == "missing":
        shutil.rmtree(tmp_path / "disk")
    with pytest.raises(UserError, match=f"{tmp_path}/disk: .*--keep-unreachable"):
        build(album, tmp_path / "disk")
    assert build(album, tmp_path / "disk", keep_unreachable=True).kept == 1
    assert build.rows == before
    assert build(tmp_path / "disk", keep_unreachable=True).gone == 3  # nothing else is left
    assert set(build.rows) == {"d.bmp"}


def test_an_empty_folder_of_photographs_that_moved_is_no_fault(build: Built, album: Path) -> None:
    build(album)
    os.rename(album / "sub" / "c.bmp", album / "c.bmp")
    build(album)
    assert set(build.rows) == {"a.bmp", "b.bmp", "c.bmp"}


def test_an_extra_that_was_installed_since_is_used(
    build: Built, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pillow_heif

    pillow_heif.from_pillow(Image.open(album / "a.bmp")).save(album / "h.heic", quality=-1)
    with monkeypatch.context() as without:
        for module in ("lasr.pictures.formats", "pipeline.build.parts"):
            without.setattr(f"{module}.installed_extras", tuple)
        summary = build(album)
        assert summary.status == {"ok": 3, "unsupported": 1}
        assert "1 unsupported (HEIC needs" in str(summary) and "h.heic" in str(summary)
        build(album)
        assert not build.plan.to_do  # it is not tried again without the extra
    assert formats.installed_extras() == ("heif", "raw")
    assert build(album).status == {"ok": 4} and build.to_do == 1
    assert len(build.catalogue) == 4


def test_totals_reconcile_and_the_unused_are_named(build: Built, album: Path) -> None:
    for number in range(7):
        (album / f"cut{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (album / "page.jpg").write_text("<html>404</html>")
    (album / "raw.jxl").write_bytes(b"\xff\x0a")
    (album / "notes.txt").touch()
    (album / ".DS_Store").touch()
    os.mkfifo(album / "pipe.png")
    os.mkfifo(album / "control")
    summary = build(album)
    assert summary.status == {"ok": 3, "unreadable": 9, "unsupported": 1}
    text = str(summary)
    assert "photographs: 13: 3 ok, 9 unreadable, 1 unsupported" in text
    names = ", ".join(f"cut{number}.jpg" for number in range(5))
    assert f"9 unreadable: {names} and 4 more" in text
    assert (
        f"\"SELECT path, error FROM images WHERE status = 'unreadable'\" --manifest {build.out}"
        in text
    )
    assert "1 unsupported (JPEG XL is not read): raw.jxl" in text
    assert "1 .txt" in text and "1 hidden" in text and "control" in text
    assert "(2 files)" in text and len(open_manifest(build.out).files) == 2
    assert set(build.catalogue) == {
        *build.rows, *(f"cut{n}.jpg" for n in range(7)), "page.jpg", "raw.jxl", "pipe.png"
    }  # fmt: skip
    assert "found: 8 .jpg, 3 .bmp" in build.text and "raw.jxl" in build.text
    assert "pipe.png" in build.text and "1 .txt" in build.text


def test_a_limit_is_no_loss(build: Built, album: Path) -> None:
    build(album)
    summary = build(album, limit=1)
    assert summary.gone == 0 and summary.left_out == 2 and set(build.rows) == {"a.bmp"}
    assert "left out: 2 by --limit" in build.text
