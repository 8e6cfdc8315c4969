"""Rows, catalogue and near-duplicates change together, at any moment, and only if anything did."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline import publication
from pipeline.storage import StoragePath
from schemas.catalogue import BESIDE, companion, work_name
from schemas.current import POINTER
from schemas.manifest import ManifestError, open_manifest
from tests.support.damage import spoil
from tests.support.published import look, make_part, publish_parts

FIRST = {f"a{n}": n for n in range(8)}
SECOND = {f"b{n}": n for n in range(8, 14)} | {"twin": 3}  # the same bytes as a3
THIRD = {f"c{n}": n for n in range(20, 24)}


class Place:
    """A manifest and its work folder."""

    def __init__(self, folder: Path):
        self.out = folder / "patches.parquet"
        self.work = StoragePath(str(folder / work_name(self.out.name)))
        self.parts = [make_part(self.work, one) for one in (FIRST, SECOND, THIRD)]

    def publish(self, *numbers: int) -> bool:
        """Publish some of the parts; a publication removes the others."""
        for number in numbers:
            if not (self.work / f"{self.parts[number]}.images.parquet").exists():
                make_part(self.work, (FIRST, SECOND, THIRD)[number])
        names = [self.parts[number] for number in numbers]
        return publish_parts(StoragePath(str(self.out)), self.work, names)

    def content(self) -> dict[str, bytes]:
        """What a finished publication consists of, for everybody."""
        files = [*self.out.iterdir(), *(self.out.with_name(name) for name in BESIDE)]
        return {path.name: path.read_bytes() for path in files if path.name != POINTER}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "data")


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): ((state := path.stat()).st_ino, state.st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_nothing_is_written_where_nothing_changed(place: Place) -> None:
    assert place.publish(0, 1, 2)
    assert len(look(place.out) or ()) == 2
    before = states(place.out.parent)
    assert not place.publish(0, 1, 2)
    assert states(place.out.parent) == before
    assert place.publish(0, 1)  # a part fewer is a change


def test_it_does_not_matter_in_which_steps_a_manifest_grew(place: Place, tmp_path: Path) -> None:
    for numbers in ((0,), (0, 2), (2,), (0, 1, 2), (1,), (1, 0)):
        place.publish(*numbers)
        fresh = Place(tmp_path / "-".join(map(str, numbers)))
        fresh.publish(*numbers)
        assert place.content() == fresh.content()
    catalogue = pq.read_table(place.out.with_name("images.parquet")).to_pylist()
    (twin,) = [row for row in catalogue if row["status"] == "duplicate"]
    assert twin["path"] == "twin" and twin["n_lr"] == 0
    assert len(pq.read_table(place.out.with_name("duplicates.parquet"))) > 10


def lost(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    spoil(path, "cut")


def flipped(path: Path) -> None:
    spoil(path, "flip")


@pytest.mark.parametrize("damage", [lost, cut, flipped])
@pytest.mark.parametrize(
    "which",
    ["images.parquet", "duplicates.parquet", "card.md", "kept images", "kept duplicates",
     "kept card", POINTER, "part", "near-lr.parquet"],
)  # fmt: skip
def test_what_is_damaged_or_missing_is_made_again(
    place: Place, damage: Callable[[Path], None], which: str
) -> None:
    place.publish(0, 1)
    before = place.content()
    if which == "part":
        path = place.out / f"{place.parts[0]}.parquet"
        content = path.read_bytes()  # else the part in the work folder is damaged, too
        path.unlink()
        path.write_bytes(content)
    elif which == POINTER:
        path = place.out / POINTER
    elif which.startswith("kept "):
        (path,) = place.work.path.glob(f"{which.removeprefix('kept ')}-*")
    elif which.startswith("near"):
        path = place.work.path / which
    else:
        path = place.out.with_name(which)
    if which == "card.md" and damage is not lost:
        return  # an edited page belongs to whoever edited it: tests/system/test_ownership.py
    if which.endswith(".parquet") and path.parent == place.out.parent and damage is flipped:
        return  # its mark may be lost with the bit: tests/system/test_damage.py
    damage(path)
    place.publish(*((0, 1, 2) if which.startswith("near") else (0, 1)))
    if which.startswith("near"):
        place.publish(0, 1)
    assert place.content() == before
    assert look(place.out) is not None


STEPS = ("replace", "link", "fsync", "unlink", "rename", "rmdir")


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do work in a fork that dies before its n-th change of the disk; whether it died."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [step]

    def trapped(original: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **named)

        return call

    for name in STEPS:
        setattr(os, name, trapped(getattr(os, name)))
    try:
        work()
    finally:
        os._exit(0)


def test_killed_anywhere_readers_see_one_of_two_and_the_next_build_cleans_up(
    place: Place, tmp_path: Path
) -> None:
    """On the way from one to another, before every third step that changes the disk."""
    place.publish(0, 1)
    old = look(place.out)
    start = tmp_path / "start"
    shutil.copytree(place.out.parent, start)
    place.publish(1, 2)
    new, expected = look(place.out), place.content()
    seen = set()
    for step in range(1, 1000, 3):
        shutil.rmtree(place.out.parent)
        shutil.copytree(start, place.out.parent)
        died = killed_at(step, lambda: place.publish(1, 2))
        view = look(place.out)
        assert view in (old, new), f"half a manifest after step {step}"
        seen.add(view == new)
        place.publish(1, 2)
        assert look(place.out) == new and place.content() == expected
        assert not [path for path in place.out.parent.rglob("*") if ".tmp" in path.name]
        if not died:
            break
    assert seen == {True, False} and step > 20


def test_a_reader_never_combines_two_publications(place: Place) -> None:
    """It looks all the time while another process publishes twenty times."""
    place.publish(0, 1)
    if not (child := os.fork()):
        try:
            for number in range(20):
                place.publish(*((1, 2) if number % 2 == 0 else (0, 1)))
        finally:
            os._exit(0)
    seen, looks = set(), 0
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if (view := look(place.out)) is not None:
            seen.add(view)
            looks += 1
    assert len(seen) == 2 and looks >= 2


def test_others_read_plain_parquet(place: Place) -> None:
    """`version.parquet` is a part without rows to them."""
    place.publish(0, 1)
    expected = pq.read_table(place.out).num_rows
    assert pl.read_parquet(place.out).height == expected  # it wants files of one kind
    assert pl.scan_parquet(f"{place.out}/*.parquet").collect().height == expected
    assert len(open_manifest(place.out).files) == len(list(place.out.iterdir())) - 1


def test_a_reader_follows_the_pointer(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.publish(0, 1)
    manifest = open_manifest(place.out)
    opened = companion(manifest, "images.parquet").read_bytes()
    # Parts of another publication beside them, as in a copy of object storage.
    extra = place.out / f"{make_part(place.work, THIRD)}.parquet"
    shutil.copy(place.work.path / extra.name, extra)
    assert open_manifest(place.out).files == manifest.files and extra.name in caplog.text
    place.publish(1, 2)
    assert companion(manifest, "images.parquet").read_bytes() == opened  # the one before stays
    place.publish(2)
    with pytest.raises(ManifestError, match="published again while it was read"):
        companion(manifest, "images.parquet")
    # Without the work folder, as after a copy, it is the file beside it.
    shutil.rmtree(place.work.path)
    assert companion(open_manifest(place.out), "card.md") == place.out.with_name("card.md")
    (place.out / f"{place.parts[2]}.parquet").unlink()
    with pytest.raises(ManifestError, match=r"holds no \*.parquet part"):
        open_manifest(place.out)
    assert "parts of it that are not there" in caplog.text


def test_a_copy_without_some_rows_is_made_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[str]()
    original = publication._copy_without

    def noted(source: StoragePath, *given: object) -> str:
        made.append(source.name)
        return original(source, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(publication, "_copy_without", noted)
    place.publish(0, 1)
    place.publish(0, 1, 2)
    assert made == [f"{place.parts[1]}.parquet"]
    place.publish(1, 2)  # the first of the twins has gone
    assert f"{place.parts[1]}.parquet" in os.listdir(place.out)
