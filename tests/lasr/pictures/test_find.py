"""Which files are found, under which names; links, loops, lists, pipes and unreadable folders."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lasr.errors import UserError
from lasr.pictures.find import check_regular, find_pictures, search
from lasr.pictures.search import Listing, expand

JPEG = b"\xff\xd8\xff\xe0 the rest of a photograph"


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


def listed(*inputs: str) -> Listing:
    return search(expand(inputs))


def test_folders_files_globs_and_lists(make: Callable[..., None]) -> None:
    make("in/a.png", "in/b/c.JPG", "in/b/.hidden.png", "in/.dir/d.png", "in/notes.doc", "e.webp")
    assert found("in") == {"in/a.png": "a.png", "in/b/c.JPG": "b/c.JPG"}
    assert found("in/notes.doc") == {"in/notes.doc": "notes.doc"}  # named, so it is taken
    assert found("in/*.png", "e.*") == {"in/a.png": "a.png", "e.webp": "e.webp"}
    assert found("in/b", "in") == {"in/b/c.JPG": "c.JPG", "in/a.png": "a.png"}


def test_a_glob_may_match_folders(make: Callable[..., None]) -> None:
    make("in/a.png", "in/b/c.jpg", "in/b/d/e.jpg", "in/notes.doc")
    assert found("in/*") == {"in/a.png": "a.png", "in/b/c.jpg": "c.jpg", "in/b/d/e.jpg": "d/e.jpg"}
    assert found("in/**") == found("in")
    assert set(found("in/**/*.jpg")) == {"in/b/c.jpg", "in/b/d/e.jpg"}
    assert set(found("in/**/d")) == {"in/b/d/e.jpg"}
    assert set(found("in/*/")) == {"in/b/c.jpg", "in/b/d/e.jpg"}
    assert listed("in/*").passed.counts == {".doc": 1}
    make("odd [1]/x.png", "odd [1]/y.png")
    assert set(found("odd [1]/x*")) == {"odd [1]/x.png"}


@pytest.mark.parametrize("inputs", [["photos"], ["photos/*"], ["photos/**"], ["photos/**/*.jpg"]])
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
    assert listed("photos").passed.counts == {"links back to the inputs": 3}
    assert set(found("photos", "data")) == {"photos/real/a.jpg", "data/b.jpg"}
    assert set(found("photos/*")) == {"photos/real/a.jpg", "photos/one/b.jpg"}


def test_a_linked_file_is_found_once(make: Callable[..., None]) -> None:
    """By its own path if that is found, too; else by the first link."""
    make("photos/z.jpg", "data/b.jpg")
    Path("photos/a.jpg").symlink_to("z.jpg")
    Path("photos/one.jpg").symlink_to("../data/b.jpg")
    Path("photos/two.jpg").symlink_to("../data/b.jpg")
    for inputs in (["photos"], ["photos/*.jpg"], ["photos/a.jpg", "photos"]):
        assert set(found(*inputs)) == {"photos/z.jpg", "photos/one.jpg"}
        assert listed(*inputs).passed.counts == {"links back to the inputs": 2}


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


def test_lists_name_files_folders_globs_and_lists(make: Callable[..., None]) -> None:
    make("in/a.png", "in/b/c.png")
    Path("outer.txt").write_text("\ufeffin/a.png\n\n inner.txt \nouter.txt\n", encoding="utf-8")
    Path("inner.txt").write_text("in/b\ns3://bucket/photos\n")
    given = [one.given for one in expand(["outer.txt"])]
    assert given == ["in/a.png", "in/b", "s3://bucket/photos"]
    Path("inner.txt").write_text("in/b\n")
    assert set(found("outer.txt")) == {"in/a.png", "in/b/c.png"}
    Path("latin.txt").write_bytes("gr\xfcn.png".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: line 1, byte 3 .* is not UTF-8"):
        found("latin.txt")


def test_a_list_is_relative_to_its_folder_or_else_to_the_current_one(
    make: Callable[..., None],
) -> None:
    make("set/a.png", "set/deep/b.png", "a.png", "here.png")
    Path("set/list.txt").write_text("a.png\ndeep/*.png\nhere.png\n")
    assert set(found("set/list.txt")) == {"set/a.png", "set/deep/b.png", "here.png"}


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


@pytest.mark.timeout(20)
def test_special_files_of_other_names_are_named_and_passed(
    make: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    make("in/a.png")
    os.mkfifo("in/pipe")
    Path("in/loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("in/socket")
        assert set(found("in")) == {"in/a.png"}
    for name in ("in/pipe", "in/socket", "in/loop"):
        assert name in caplog.text


def test_the_content_tells_where_the_suffix_does_not(make: Callable[..., None]) -> None:
    make("in/empty", "in/x.unknown")
    for name in ("IMG_1", "photo.jpg_large", "b.0001"):
        Path("in", name).write_bytes(JPEG)
    Path("in/README").write_text("no photograph")
    Path("in/photo.txt").write_bytes(JPEG)  # a known suffix counts: the file is not opened
    assert set(found("in")) == {"in/IMG_1", "in/photo.jpg_large", "in/b.0001"}
    passed = listed("in").passed
    assert passed.counts == {"without suffix": 2, ".unknown": 1, ".txt": 1}


def test_litter_is_counted_and_not_searched(make: Callable[..., None]) -> None:
    litter = (".DS_Store", "Thumbs.db", "__MACOSX/._x.jpg", "@eaDir/a.jpg/t.jpg", "lost+found/q")
    make("in/a.jpg", *(f"in/{name}" for name in litter))
    listing = listed("in")
    assert [file.path.name for file in listing.files] == ["a.jpg"]
    assert listing.passed.counts == {"hidden": 5}


def test_formats_that_are_not_read_are_named(
    make: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    make("in/a.jpg", "in/b.JXL", "in/c.psd")
    assert set(found("in")) == {"in/a.jpg"}
    assert "JPEG XL is not read" in caplog.text and "in/b.JXL" in caplog.text
    assert "in/c.psd" in caplog.text
    assert set(found("in/b.JXL")) == {"in/b.JXL"}  # named: reading it says what is wrong


@pytest.mark.parametrize("inputs", [["in"], ["in/*"], ["in/*/*.png"], ["in/**/*.png"]])
def test_a_folder_that_cannot_be_listed_is_an_error(
    make: Callable[..., None], monkeypatch: pytest.MonkeyPatch, inputs: list[str]
) -> None:
    make("in/a.png", "in/b/c.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"in/b: this folder cannot be listed \(Permission denied"):
        find_pictures(inputs)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_permissions_of_another_user() -> None:
    """A folder without the right to list it, and one that may be listed but not entered."""
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        top = Path(name)
        top.chmod(0o755)
        for folder, mode in (("closed", 0o700), ("names only", 0o744)):
            (top / folder).mkdir()
            (top / folder / "a.png").touch()
            (top / folder).chmod(mode)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.setuid(65534)
                one = search(expand([name]))
                files = [str(file.path.relative_to(top)) for file in one.files]
                folders = [str(path.relative_to(top)) for path in one.unreachable]
                os.write(writing, f"{files} {folders}".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            assert answer.read() == "['names only/a.png'] ['closed']"


def test_inputs_that_lead_nowhere(make: Callable[..., None]) -> None:
    make("empty/notes.doc")
    with pytest.raises(UserError, match="missing: no such folder, file, glob or list"):
        found("missing")
    with pytest.raises(UserError, match=r"empty/\*\.png: no such folder, file, glob or list"):
        found("empty/*.png")
    Path("link").symlink_to("a disk that is not mounted")
    with pytest.raises(UserError, match="link: no such folder"):
        found("link")
    with pytest.raises(UserError, match="no picture in empty"):
        found("empty")


_NAMES = st.sampled_from(
    ["a.jpg", "b.PNG", "c.txt", "d", "e.heic", ".f.jpg", "Thumbs.db", "g.odd", "h.mov", "i.jxl"]
)
_FOLDERS = st.sampled_from(["", "one/", "one/two/", ".hid/", "__MACOSX/", "three/"])
_KINDS = st.sampled_from(["empty", "jpeg", "text", "pipe", "dangling", "link", "folder link"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=st.dictionaries(st.tuples(_FOLDERS, _NAMES), _KINDS, max_size=12))
def test_every_file_is_found_or_passed_exactly_once(
    tree: dict[tuple[str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("tree")
    (top / "one" / "two").mkdir(parents=True)
    for (folder, name), kind in tree.items():
        path = top / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind in ("dangling", "link", "folder link"):
            targets = {"dangling": "nowhere", "link": top / "one" / "a.jpg", "folder link": top}
            path.symlink_to(targets[kind])
        else:
            path.write_bytes({"empty": b"", "jpeg": JPEG, "text": b"words"}[kind])
    listing = search(expand([str(top), str(top / "one")]))
    passed = [Path(name) for names in listing.passed.names.values() for name in names]
    paths = [file.path for file in listing.files] + passed
    assert len(set(paths)) == len(paths)
    hidden = {folder for folder in (".hid/", "__MACOSX/") if (top / folder).exists()}
    visible = {key for key in tree if key[0] not in hidden}
    count = len(listing.files) + sum(listing.passed.counts.values())
    assert count == len(visible) + len(hidden)
    if max(listing.passed.counts.values(), default=0) <= 5:  # then all have names
        expected = {top / folder / name for folder, name in visible}
        assert set(paths) == expected | {top / folder for folder in hidden}
