"""Storage paths: other schemes than S3, and what a killed or a second writer leaves behind."""

from pathlib import Path

import pytest

from pipeline.storage import StorageError, StoragePath, scratch


def test_other_schemes_go_through_fsspec() -> None:
    path = StoragePath("memory://bucket/folder/ä #%.txt")
    path.write_bytes(b"text")
    assert path.read_bytes() == b"text" and path.parent.names() == ["ä #%.txt"]
    path.remove()
    assert not path.exists() and path.parent.names() == []


@pytest.mark.parametrize("uri", ["s3://bucket/a/b", "s3://bucket/a/b/", "a/b", "a/b/"])
def test_a_slash_at_the_end_changes_nothing(uri: str) -> None:
    path = StoragePath(uri)
    assert path.name == "b" and path.parent.name == "a"
    assert (path.parent / "c").uri == f"{uri.removesuffix('b/').removesuffix('b')}c"


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """A machine that was given up too early may still be at a shard that another one has now."""
    folder = StoragePath(str(tmp_path))
    with scratch(folder, "part") as first, scratch(folder, "part") as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        (folder / "part").take(first)
    assert (folder / "part").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_what_is_written_for_object_storage_has_no_name_here() -> None:
    """So a kill leaves no file behind."""
    with scratch(StoragePath("memory://bucket/folder"), "part") as temporary:
        temporary.write_bytes(b"rows")
        assert str(temporary.readlink()).endswith("(deleted)")
        StoragePath("memory://bucket/folder/part").take(temporary)
    assert StoragePath("memory://bucket/folder/part").read_bytes() == b"rows"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StorageError, match=r"/file: cannot be written \(Not a directory\)"):
        StoragePath(str(file / "below")).take(file)
