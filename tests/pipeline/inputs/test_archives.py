"""Photographs in tar archives and Parquet files: the same rows as from a folder."""

import io
import os
import random
import tarfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.report.picture
from lasr.errors import UserError
from lasr.pictures.search import Passed
from pipeline.build.batches import bounded_map
from pipeline.inputs import tables
from pipeline.inputs.archives import members
from pipeline.inputs.photographs import Found, find, find_all
from pipeline.storage import StoragePath
from tests.pipeline.inputs.test_changes import EARLIER, Built, album, build, photo, read

__all__ = ["album", "build", "read"]  # fixtures


def pack(archive: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive


def tabulate(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """A data set of pictures as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"label": datasets.Value("int8"), "image": datasets.Image(decode=False)}
    rows = [{"label": 1, "image": {"bytes": b, "path": name}} for name, b in files]
    written = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    written.to_parquet(path, batch_size=2)
    return path


def contents(folder: Path) -> list[tuple[str, bytes]]:
    """Names and bytes of all files, sorted by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in files]


def by_name(built: Built) -> list[set[str]]:
    """Ids of the patches of each photograph."""
    return [ids for _, ids in sorted(built.rows.items())]


WAYS = {"tar": ("shards/00.tar", pack), "parquet": ("data/train-00000.parquet", tabulate)}


@pytest.mark.parametrize("way", WAYS)
def test_an_archive_gives_the_rows_of_its_folder(
    way: str, build: Built, album: Path, tmp_path: Path, read: Counter[str]
) -> None:
    name, make = WAYS[way]
    archive = make(tmp_path / name, contents(album))
    fresh = Built(tmp_path / "fresh" / "patches.parquet")
    fresh(album)
    build(archive)
    names = ["a.bmp", "b.bmp", "sub/c.bmp"]
    if way == "parquet":
        names = [f"{row:08}/{name}" for row, name in enumerate(names)]
    in_archive = [f"{archive.name}/{name}" for name in names]
    assert list(build.catalogue) == in_archive
    assert build.rows == dict(zip(in_archive, by_name(fresh), strict=True))
    assert {row["status"] for row in build.catalogue.values()} == {"ok"}

    read.clear()
    build(archive)
    assert not build.plan.to_do and not read
    before = archive.stat()
    os.utime(archive, (EARLIER, EARLIER))
    build(archive)  # as if it was copied: compared by bytes
    assert not build.plan.to_do and read == {"hashed": 3}

    photo(album / "b.bmp", 7)  # an archive of the same size, with another photograph in it
    make(archive, contents(album))
    assert archive.stat().st_size == before.st_size
    old = build.rows
    build(archive)
    changed = [name for name in in_archive if build.rows[name] != old[name]]
    assert changed == [in_archive[1]]
    fresh(album)
    assert build.rows == dict(zip(in_archive, by_name(fresh), strict=True))


def test_photographs_that_move_into_a_tar_keep_their_patches(
    build: Built, album: Path, tmp_path: Path, read: Counter[str]
) -> None:
    build(album)
    before = build.rows
    archive = pack(tmp_path / "00.tar", contents(album))
    read.clear()
    build(archive)
    assert build.rows == {f"00.tar/{name}": ids for name, ids in before.items()}
    assert read == {"hashed": 3}


def test_the_picture_of_a_photograph_in_an_archive(
    build: Built, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack(tmp_path / "shards/00.tar", contents(album))
    build(archive)
    argv = ["--manifest", str(build.out), "--images", str(tmp_path / "shards/*.tar")]
    argv += ["--out", str(tmp_path / "a.png"), "--photograph", "00.tar/sub/c.bmp"]
    assert pipeline.report.picture.main(argv) == 0
    assert capsys.readouterr().out.startswith("00.tar/sub/c.bmp: ")


def test_what_a_tar_holds_is_all_accounted_for(tmp_path: Path, album: Path) -> None:
    picture = (album / "a.bmp").read_bytes()
    files = [
        ("0001.bmp", picture), ("0001.txt", b"a cat"), ("0001.json", b"{}"), ("./x/2.bmp", picture),
        ("../../../up.bmp", picture), ("/root.bmp", picture), ("IMG_7", picture), ("notes", b"hm"),
        ("._0001.bmp", b"mac"), ("__MACOSX/1.bmp", b"mac"), ("0001.bmp", picture + b"later"),
        ("größe \udcff.bmp", picture), ("p" * 150 + "/" + "q" * 150 + ".bmp", picture),
    ]  # fmt: skip
    archive = pack(tmp_path / "a.tar", files)
    with tarfile.open(archive, "a") as tar:
        for name, kind in (("link.bmp", tarfile.SYMTYPE), ("pipe.bmp", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    found = find_all([str(archive)])
    assert {one.name for one in found.found} == {
        "a.tar/0001.bmp", "a.tar/x/2.bmp", "a.tar/up.bmp", "a.tar/root.bmp", "a.tar/IMG_7",
        "a.tar/größe \\xff.bmp", f"a.tar/{'p' * 150}/{'q' * 150}.bmp",
    }  # fmt: skip
    assert found.passed.counts == {
        ".txt": 1, ".json": 1, "without suffix": 1, "hidden": 2,
        "pipes, sockets or devices": 2, "replaced by a later file of the same name in a tar": 1,
    }  # fmt: skip
    by_name = {one.name: one for one in found.found}
    assert by_name["a.tar/0001.bmp"].read_bytes() == picture + b"later"  # as when unpacked
    assert by_name["a.tar/IMG_7"].read_bytes() == picture


def test_archives_in_folders_are_passed_over_unless_they_are_named(
    tmp_path: Path, album: Path
) -> None:
    pack(album / "00.tar", [("1.bmp", (album / "a.bmp").read_bytes())])
    found = find_all([str(album)])
    assert len(found.found) == 3 and found.passed.counts == {".tar": 1}
    (tmp_path / "list.txt").write_text(f"{album}/00.tar\n{album}/a.bmp")
    for given in (f"{album}/*.tar", str(tmp_path / "list.txt"), str(album / "00.tar")):
        assert "00.tar/1.bmp" in {one.name for one in find([given])}


@pytest.mark.parametrize("way", WAYS)
def test_damaged_archives_are_named(way: str, tmp_path: Path, album: Path) -> None:
    name, make = WAYS[way]
    archive = make(tmp_path / name, contents(album))
    whole = archive.read_bytes()
    for spoilt in (whole[:512] + b"noise" * 9, b"", b"\x1f\x8b" + whole, whole[: len(whole) // 2]):
        archive.write_bytes(spoilt)
        if not spoilt:  # an empty file is a row of the catalogue, as everywhere
            assert [one.size for one in find([str(archive)])] == [0]
            continue
        result = find_all([str(archive)])
        assert not result.found and list(result.unreachable) == [str(archive)]
        with pytest.raises(UserError, match=r"cannot be read .*keep-unreachable"):
            find([str(archive)])
    if way == "tar":
        at = 1024 + len(contents(album)[0][1]) // 512 * 512  # the header of the second file
        archive.write_bytes(whole[:at] + b"\xff" * 512 + whole[at + 512 :])
        assert "no file's header at byte" in find_all([str(archive)]).unreachable[str(archive)]


def test_wrong_archives_are_refused_in_one_line(
    tmp_path: Path, album: Path, manifest: Path
) -> None:
    for name in ("a.tar.gz", "a.TGZ"):
        (tmp_path / name).write_bytes(b"\x1f\x8b")
        with pytest.raises(UserError, match=r"a compressed archive.*gunzip"):
            find([str(tmp_path / name)])
    part = next(manifest.glob("*.parquet"))
    with pytest.raises(UserError, match="a manifest of patches, not photographs"):
        find([str(part)])
    blob = pa.array([b"x"])
    for columns, message in [
        ({"n": [1]}, "no column of pictures"),
        ({"jpg": blob, "png": blob}, r"several columns of pictures \(jpg, png\)"),
        ({"title": blob}, "no column of pictures"),
    ]:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(UserError, match=message):
            find([str(tmp_path / "t.parquet")])


def test_columns_of_bytes_and_rows_without_any(tmp_path: Path) -> None:
    blobs = pa.array([b"first", None, b"third"], pa.large_binary())
    pq.write_table(pa.table({"key": ["a", "b", "c"], "jpg": blobs}), tmp_path / "t.parquet")
    first, second, third = find([str(tmp_path / "t.parquet")])
    assert [first.name, first.read_bytes(), third.read_bytes()] == [
        "t.parquet/00000000", b"first", b"third"
    ]  # fmt: skip
    with pytest.raises(OSError, match="the row holds no bytes"):
        second.read_bytes()
    by_path = pa.array(
        [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"x", "path": "../a.jpg"}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": by_path}), tmp_path / "u.parquet")
    found = find([str(tmp_path / "u.parquet")])
    assert [one.name.split("/", 1)[1] for one in found] == [
        "00000000", "00000001/etc/passwd", "00000002/a.jpg"
    ]  # fmt: skip
    assert found[2].read_bytes() == b"x"


def test_rows_are_decoded_once_in_order_and_rightly_in_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = [os.urandom(200) for _ in range(300)]
    table = pa.table({"image": pa.array([{"bytes": one, "path": None} for one in content])})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=70)
    found, decoded = find([str(tmp_path / "t.parquet")]), 0
    original = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *arguments: object, **more: object) -> object:
        nonlocal decoded
        for batch in original(self, *arguments, **more):
            decoded += len(batch)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    with ThreadPoolExecutor(4) as threads:  # as a shard reads
        assert list(bounded_map(threads, Found.read_bytes, found, 6)) == content
    assert decoded == 300
    tables._READERS.clear()
    decoded = 0
    assert found[290].read_bytes() == content[290] and decoded <= 20  # not from the start
    order = random.Random(0).sample(range(300), 40)
    assert [found[row].read_bytes() for row in order] == [content[row] for row in order]


def test_members_of_an_address_need_few_requests(tmp_path: Path, album: Path) -> None:
    """fsspec's `memory` stands for object storage: what is read is counted."""
    import fsspec

    memory = fsspec.filesystem("memory")
    archive = pack(tmp_path / "a.tar", [(f"{n}.bmp", b"B" * 3000) for n in range(100)])
    memory.pipe("/bucket/shards/a.tar", archive.read_bytes())
    memory.pipe("/bucket/shards/b.txt", b"")
    memory.pipe("/bucket/shards/deep/c.tar", archive.read_bytes())
    assert len(members(StoragePath("memory://bucket/shards/a.tar"), Passed())) == 100
    for given, names in [
        ("memory://bucket/shards/a.tar", ["a.tar"]),
        ("memory://bucket/shards/*.tar", ["a.tar"]),
        ("memory://bucket/shards/**/*.tar", ["a.tar", "deep/c.tar"]),
        ("memory://bucket/s*/[ab].*", ["shards/a.tar"]),
    ]:
        found = find([given])
        assert sorted({one.name.rsplit("/", 1)[0] for one in found}) == names, given
        assert found[7].read_bytes() == b"B" * 3000
    assert find_all(["memory://bucket/shards"]).passed.counts == {".tar": 2, ".txt": 1}
    assert find_all(["memory://bucket/*.tar"]).unreachable == {
        "memory://bucket/*.tar": "no such folder or file"
    }
