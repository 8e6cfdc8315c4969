"""Which files are found, under which names; links, loops, lists, pipes and unreadable folders."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lasr.errors import UserError
from lasr.pictures.find import check_regular, expand_lists, find_files, find_pictures


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Creates empty files below the current folder."""
    monkeypatch.chdir(tmp_path)

    def create(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()

    return create


def found(*inputs: str, exclude: Path | None = None) -> dict[str, str]:
    """Path → name, both as POSIX strings relative to the current folder."""
    pictures = find_pictures(inputs, exclude).items()
    return {path.relative_to(Path.cwd()).as_posix(): name.as_posix() for path, name in pictures}


def test_folders_files_globs_and_lists(make: Callable[..., None]) -> None:
    make("in/a.png", "in/b/c.JPG", "in/b/.hidden.png", "in/.dir/d.png", "in/notes.doc", "e.webp")
    assert found("in") == {"in/a.png": "a.png", "in/b/c.JPG": "b/c.JPG"}
    assert found("in/notes.doc") == {"in/notes.doc": "notes.doc"}  # named, so it is taken
    assert found("in/*.png", "e.*") == {"in/a.png": "a.png", "e.webp": "e.webp"}
    assert found("in/b", "in") == {"in/b/c.JPG": "c.JPG", "in/a.png": "a.png"}


def test_a_glob_may_match_folders(make: Callable[..., None]) -> None:
    make("in/a.png", "in/b/c.jpg", "in/b/d/e.jpg")
    assert found("in/*") == {"in/a.png": "a.png", "in/b/c.jpg": "c.jpg", "in/b/d/e.jpg": "d/e.jpg"}
    flat = found("in/**")
    assert flat == {f"in/{name}": Path(name).name for name in ("a.png", "b/c.jpg", "b/d/e.jpg")}


@pytest.mark.parametrize("inputs", [["photos"], ["photos/*"]])
def test_a_linked_folder_is_searched(make: Callable[..., None], inputs: list[str]) -> None:
    make("data/set/a.jpg", "photos/b.jpg", "photos/c/d.jpg")
    Path("photos/set").symlink_to(Path("data/set").absolute())
    assert set(found(*inputs)) == {"photos/b.jpg", "photos/c/d.jpg", "photos/set/a.jpg"}
    assert found("photos")["photos/set/a.jpg"] == "set/a.jpg"


def test_no_folder_is_searched_twice_and_real_paths_win(make: Callable[..., None]) -> None:
    make("photos/real/a.jpg", "data/b.jpg")
    Path("photos/alias").symlink_to("real")  # sorts before `real`
    Path("photos/real/loop").symlink_to("..")
    Path("photos/one").symlink_to("../data")
    Path("photos/two").symlink_to("../data")
    assert set(found("photos")) == {"photos/real/a.jpg", "photos/one/b.jpg"}
    assert set(found("photos", "data")) == {"photos/real/a.jpg", "data/b.jpg"}
    assert set(found("photos/*")) == {"photos/real/a.jpg", "photos/one/b.jpg"}


def test_a_link_to_a_folder_around_the_input_is_not_followed(make: Callable[..., None]) -> None:
    make("album/photos/a.jpg", "album/results/b.jpg")
    Path("album/photos/up").symlink_to("..")
    assert set(found("album/photos")) == {"album/photos/a.jpg"}


def test_links_between_two_folders_end(make: Callable[..., None]) -> None:
    make("a/x.jpg", "b/y.jpg")
    Path("a/b").symlink_to("../b")
    Path("b/a").symlink_to("../a")
    assert set(found("a")) == {"a/x.jpg", "a/b/y.jpg"}


def test_the_folder_of_results_is_not_searched(make: Callable[..., None]) -> None:
    make("in/a.png", "in/out/b.png")
    Path("in/link").symlink_to("out")
    assert set(found("in", exclude=Path("in/out"))) == {"in/a.png"}
    assert set(found("in/*", exclude=Path("in/out"))) == {"in/a.png"}
    with pytest.raises(UserError, match="in/out holds the inputs"):
        found("in/out", exclude=Path("in/out"))


def test_lists_name_files_folders_and_lists(make: Callable[..., None]) -> None:
    make("in/a.png", "in/b/c.png")
    Path("outer.txt").write_text("\ufeffin/a.png\n\n inner.txt \nouter.txt\n", encoding="utf-8")
    Path("inner.txt").write_text("in/b\ns3://bucket/photos\n")
    assert list(expand_lists(["outer.txt"])) == ["in/a.png", "in/b", "s3://bucket/photos"]
    Path("inner.txt").write_text("in/b\n")
    assert set(found("outer.txt")) == {"in/a.png", "in/b/c.png"}
    Path("latin.txt").write_bytes("gr\xfcn.png".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: this list cannot be read \(not UTF-8\)"):
        found("latin.txt")


@pytest.mark.timeout(20)
def test_pipes_and_dangling_links_are_found_and_told_apart(make: Callable[..., None]) -> None:
    make("in/a.png")
    os.mkfifo("in/pipe.png")
    Path("in/gone.png").symlink_to("nowhere")
    names = {"in/a.png", "in/pipe.png", "in/gone.png"}
    assert set(found("in")) == set(found("in/*.png")) == set(found(*names)) == names
    check_regular(Path("in/a.png"))
    check_regular(Path("in/gone.png"))  # opening it says what is wrong
    for special in (Path("in/pipe.png"), Path("/dev/null")):
        with pytest.raises(UserError, match=f"{special}: not a regular file"):
            check_regular(special)


def test_a_folder_that_cannot_be_listed_is_an_error(
    make: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in/a.png", "in/b/c.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="in/b: this folder cannot be listed"):
        list(find_files(["in"]))


def test_inputs_that_lead_nowhere(make: Callable[..., None]) -> None:
    make("empty/notes.doc")
    with pytest.raises(UserError, match="missing: no such folder, file, glob or list"):
        found("missing")
    with pytest.raises(UserError, match="no picture in empty"):
        found("empty")
