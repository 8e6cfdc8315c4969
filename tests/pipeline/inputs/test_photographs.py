"""Which photographs a build finds, and what they are called."""

import os
from pathlib import Path

import pytest
from PIL import Image

from lasr.errors import UserError
from pipeline.inputs import photographs
from pipeline.inputs.photographs import find, find_all
from pipeline.stages.images import load


def create(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(*images: Path | str) -> dict[str, str]:
    """Name -> path, relative to the folder of the test."""
    found = find(str(path) for path in images)
    return {one.name: str(one.path).split("/top/")[1] for one in found}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder whose name the test can tell from others."""
    (tmp_path / "top").mkdir()
    return tmp_path / "top"


def test_folders_files_globs_and_lists(top: Path) -> None:
    listed = ("b/two.JPG", "a.png", "b/.hidden.png", ".dir/c.png", "b/notes.doc", "über x.webp")
    create(*(top / name for name in listed))
    all_names = ["a.png", "b/two.JPG", "über x.webp"]
    assert list(names(top)) == all_names
    (top / "list.txt").write_text(f"{top}/a.png\n\n{top}/b\n")
    assert list(names(top / "list.txt")) == ["a.png", "two.JPG"]
    (top / "list.txt").write_text("a.png\nb/*.JPG\n")  # relative to the list
    assert list(names(top / "list.txt")) == ["a.png", "two.JPG"]
    (top / "list.txt").write_text("b/two.JPG\n")
    assert list(names(top / "list.txt")) == ["b/two.JPG"]
    assert list(names(top / "*.png", top / "a.png")) == ["a.png"]
    assert list(names(top / "*")) == all_names  # as those of the folder before the wildcard
    assert list(names(top / "b")) == ["two.JPG"]


def test_names_do_not_depend_on_other_files_or_inputs(top: Path) -> None:
    create(top / "a/photos/2024/x.jpg", top / "a/photos/2024/y.jpg")
    before = names(top / "a/photos")
    assert before == {f"2024/{name}.jpg": f"a/photos/2024/{name}.jpg" for name in "xy"}
    create(top / "a/photos/2023/x.jpg", top / "b/photos/2024/x.jpg", top / "b/photos/2024/z.jpg")
    both = names(top / "a/photos", top / "b/photos")
    assert before.items() <= both.items()
    assert both.items() - names(top / "a/photos").items() == {
        ("photos/2024/x.jpg", "b/photos/2024/x.jpg"), ("2024/z.jpg", "b/photos/2024/z.jpg")
    }  # fmt: skip
    create(top / "c/photos/2024/x.jpg", top / "aa/photos/2024/x.jpg")
    more = names(*(top / folder / "photos" for folder in ("a", "b", "c", "aa")))
    assert both.items() <= more.items()
    assert more["c/photos/2024/x.jpg"] == "c/photos/2024/x.jpg"
    assert more["aa/photos/2024/x.jpg"] == "aa/photos/2024/x.jpg"


def test_a_name_that_looks_like_a_folder_of_another_input_is_kept_apart(top: Path) -> None:
    create(top / "a/x.jpg", top / "a/photos/x.jpg", top / "photos/x.jpg")
    found = names(top / "a", top / "photos")
    assert len(found) == 3 and found["top/photos/x.jpg"] == "photos/x.jpg"


def test_links_to_nothing_and_pipes_are_found_and_loops_end(top: Path) -> None:
    create(top / "a.png")
    (top / "broken.png").symlink_to(top / "gone")
    (top / "loop").symlink_to(top)
    os.mkfifo(top / "pipe.png")
    assert [(f.name, f.size) for f in find([str(top)])] == [
        ("a.png", 0), ("broken.png", 0), ("pipe.png", -1)
    ]  # fmt: skip


def test_a_linked_folder_keeps_its_name_until_it_is_an_input(top: Path) -> None:
    create(top / "data/a.png", top / "photos/b.png")
    (top / "photos" / "set").symlink_to(top / "data")
    assert names(top / "photos") == {"b.png": "photos/b.png", "set/a.png": "photos/set/a.png"}
    assert names(top / "photos", top / "data") == {"b.png": "photos/b.png", "a.png": "data/a.png"}


def test_names_that_are_no_utf8_are_spelt_out(top: Path) -> None:
    with open(os.fsencode(top) + b"/caf\xe9.png", "wb") as file:
        Image.new("RGB", (60, 40)).save(file, "PNG")
    (one,) = find([str(top)])
    assert one.name == r"caf\xe9.png" and load(one, 32).pixels.shape == (40, 60, 3)


def test_inputs_that_lead_nowhere(top: Path) -> None:
    with pytest.raises(UserError, match=r"missing: no such folder.*--keep-unreachable"):
        find([str(top / "missing")])
    with pytest.raises(UserError, match="no photograph found"):
        find([str(top)])
    create(top / "b/a.png")
    (top / "empty").mkdir()
    found = find_all([str(top), str(top / "missing")])
    assert list(found.unreachable) == [str(top / "missing")]
    assert found.hollow == [str(top / "empty")]


def test_lists_name_addresses(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(top / "b.png")
    asked = []
    monkeypatch.setattr(
        photographs, "_in_object_storage", lambda given, result: asked.append(given) or []
    )
    (top / "list.txt").write_text(f"{top}/b.png\ns3://bucket/photos\n")
    assert [f.name for f in find([str(top / "list.txt")])] == ["b.png"]
    assert asked == ["s3://bucket/photos"]


def test_states_tell_a_replaced_file(top: Path) -> None:
    create(top / "a.png", top / "other.png")
    for path in (top / "a.png", top / "other.png"):
        os.utime(path, (10, 10))
    (before,) = find([str(top / "a.png")])
    assert find([str(top / "a.png")])[0].state == before.state
    os.replace(top / "other.png", top / "a.png")
    (after,) = find([str(top / "a.png")])
    assert (after.size, after.modified) == (before.size, before.modified)
    assert after.state != before.state


def test_object_storage_is_listed_by_the_same_rules() -> None:
    """Through fsspec: litter, other files, contents without suffix, ETags or times."""
    import fsspec

    memory = fsspec.filesystem("memory")
    contents = {"a.jpg": b"", "b/IMG_1": b"\xff\xd8\xff\xe0", "b/notes.txt": b"", "c": b"words"}
    for name, content in (contents | {"__MACOSX/._a.jpg": b"", ".x/a.jpg": b""}).items():
        memory.pipe(f"/bucket/photos/{name}", content)
    try:
        found = find_all(["memory://bucket/photos"])
        assert [one.name for one in found.found] == ["a.jpg", "b/IMG_1"]
        assert found.passed.counts == {"hidden": 2, ".txt": 1, "without suffix": 1}
        assert all(one.identity for one in found.found)
        assert find_all(["memory://bucket/none"]).unreachable
    finally:
        memory.rm("/bucket", recursive=True)
