"""The mark in each kind of file, and that nothing foreign is lost between check and replacement."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lasr import files
from lasr.errors import UserError
from lasr.files import atomic_path, replace_folder
from lasr.marks import in_picture, signed
from lasr.ownership import is_ours, own_path, write_own
from lasr.pictures.write import save_picture
from pipeline.convert.webdataset import open_shard
from trainer.evaluate import scores
from trainer.evaluate.scores import Cache
from trainer.models.ncnn import write_ncnn
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import write_tensors
from trainer.sheets import write_sheet

PIXELS = np.zeros((8, 8, 3), np.uint8)


def picture(path: Path) -> None:
    save_picture(path, [PIXELS], PIXELS.shape, PIXELS.dtype, "LA-SR net@0123 x4 of 4567")


def by_pillow(path: Path) -> None:
    Image.fromarray(PIXELS).save(path, **in_picture())


def shard(path: Path) -> None:
    with open_shard(path):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.parquet": lambda path: pq.write_table(
        pa.table({"a": [1]}).replace_schema_metadata({"la-sr": "{}"}), path
    ),
    "a.safetensors": lambda path: write_tensors(path, {"a": torch.zeros(2)}),
    "a.pth": lambda path: write_tensors(path, {"a": torch.zeros(2)}),
    "a.png": picture,
    "a.jpg": picture,
    "a.webp": picture,
    "a.tiff": picture,
    "b.png": by_pillow,
    "b.jpg": by_pillow,
    "b.webp": by_pillow,
    "sheet.png": lambda path: write_sheet(path, {"a": torch.zeros(1, 3, 4, 4)}),
    "a.tar": shard,
    "a.html": lambda path: path.write_text(signed("<!doctype html>\n<p>a</p>")),
    "a.md": lambda path: path.write_text(signed("# a\n<!-- la-sr 0123456789abcdef -->\n")),
    "a.jsonl": lambda path: Cache(path).add("a", {"score": 1.0, "device": "CPU"}),
    "means.csv": lambda path: pyarrow.csv.write_csv(
        pa.Table.from_pylist(scores.means([score()])), path
    ),
    "scores.csv": lambda path: pyarrow.csv.write_csv(scores.SCHEMA.empty_table(), path),
    "a.param": lambda path: write_ncnn(
        untrained_rrdb(4, 1, 4), path, path.with_suffix(".bin"), half=True
    ),
    "config.json": lambda path: path.write_text(
        json.dumps({"a": 1, "manifest_identity": "0", "weights": {}}, indent=2)
    ),
}


def score() -> scores.Score:
    numbers = {"higher_is_better": True, "score": 1.0, "parameters": 1, "seconds": 1.0}
    texts = dict.fromkeys(scores.SCHEMA.names, "a")
    return scores.Score(**(texts | numbers))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_known_whatever_its_name(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    other = (tmp_path / name).rename(tmp_path / "renamed")
    assert is_ours(other)
    (tmp_path / "link").symlink_to(other)
    assert not is_ours(tmp_path / "link")


@pytest.mark.parametrize("name", ["a.html", "a.md"])
def test_an_edited_page_belongs_to_its_editor(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_text()
    for edited in (content + "mine\n", content.replace("a", "b", 1), content[:-1], content * 2):
        path.write_text(edited)
        assert not is_ours(path), edited
        with pytest.raises(UserError, match="is not ours to replace"):
            write_own(path, b"new")
        assert path.read_text() == edited


OLD = {  # the beginnings of pages of version 0.1.0
    "card.md": "---\nlicense: other\n---\n\n# LA-SR patches: mine\n\nFar (`lr`, 56x56) and near",
    "README.md": "# mine: a training run of LA-SR\n\n`lasr train` resumes this run",
    "means.md": "| Method | PSNR ↑ | Params (M) | Runtime (s) | Images |\n|:---|",
}


@pytest.mark.parametrize("name", OLD)
def test_pages_of_version_0_1_0_are_known(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(OLD[name])
    assert is_ours(path)
    path.write_text(f"mine\n{OLD[name]}")
    assert not is_ours(path)


def test_a_page_whose_mark_was_taken_away_is_not_taken_for_an_old_one(
    manifest: Path, tmp_path: Path
) -> None:
    card = manifest.parent / "card.md"
    assert is_ours(card)
    path = tmp_path / "card.md"
    path.write_text("".join(card.read_text().splitlines(keepends=True)[:-1]))
    assert not is_ours(path)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_looked_at_without_an_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), 8):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(0, len(content))])
        is_ours(path)
    for hostile in (
        b"",
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"PK\3\4" * 9,
        b"\xff" * 8 + b"{",
        b"\x08",
    ):
        path.write_bytes(hostile)
        assert not is_ours(path)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    with pytest.raises(UserError, match="appeared or was changed"), own_path(path) as temporary:
        temporary.write_text("ours")
        path.write_text("precious")
    assert path.read_text() == "precious" and [p.name for p in tmp_path.iterdir()] == ["a.md"]


def test_a_link_with_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    (tmp_path / ".a.md.tmp").symlink_to(tmp_path / "notes")
    with pytest.raises(UserError, match="left as it is"):
        write_own(tmp_path / "a.md", b"ours")
    assert (tmp_path / "notes").read_text() == "precious"
    assert not (tmp_path / "a.md").exists() and (tmp_path / ".a.md.tmp").is_symlink()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_file_that_is_swapped_between_two_system_calls_is_put_back(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.md"
    path.write_text(signed("ours"))
    asked: list[bool] = []

    def looked_at(file: Path) -> bool:
        asked.append(is_ours(file))
        if len(asked) == 1:
            path.write_text("precious")  # right after the check
        return asked[-1]

    if not can_exchange:  # the file system cannot: the last moment to look is before the rename
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.link", _no_links)
        if can_exchange:
            with pytest.raises(UserError), atomic_path(path, looked_at) as temporary:
                temporary.write_text("new")
            assert asked == [True, False] and path.read_text() == "precious"
    path.write_text(signed("ours"))
    with atomic_path(path, is_ours) as temporary:
        temporary.write_text(signed("new"))
    assert path.read_text() == signed("new") and len(list(tmp_path.iterdir())) == 1


def _no_links(source: Path, target: Path) -> None:
    raise PermissionError(1, "not on this file system")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_that_is_filled_meanwhile_gets_its_name_back(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    new, old = tmp_path / "new", tmp_path / "old"
    for folder, content in ((new, "new"), (old, "precious")):
        folder.mkdir()
        (folder / "a").write_text(content)
    with pytest.raises(UserError, match="is not ours to replace"):
        replace_folder(new, old, lambda folder: (folder / "a").read_text() != "precious")
    assert (old / "a").read_text() == "precious" and (new / "a").read_text() == "new"
    replace_folder(new, old, lambda folder: True)
    assert (old / "a").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["old"]
