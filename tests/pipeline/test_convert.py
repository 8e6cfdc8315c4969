"""A manifest for other trainers, read back by `datasets`, `webdataset` and BasicSR's rules."""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from lasr.ownership import is_ours
from pipeline.convert import __main__ as convert
from pipeline.convert import folder, rows, webdataset
from schemas.manifest import open_manifest
from schemas.parquet import rows_to


def run(*argv: object) -> int:
    return convert.main([str(word) for word in argv])


@pytest.fixture(scope="module")
def patches(manifest: Path) -> dict[str, dict[str, Any]]:
    """The rows of the manifest by id, as pyarrow reads them."""
    files = [str(file) for file in open_manifest(manifest).files]
    return {row["patch_id"]: row for row in ds.dataset(files).to_table().to_pylist()}


def check_row(about: dict[str, Any], row: dict[str, Any]) -> None:
    expected = {name: value for name, value in row.items() if value is not None and name != "image"}
    assert about == json.loads(json.dumps(expected))


def test_shards_hold_every_patch_once_for_any_reader_of_webdataset(
    manifest: Path, patches: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    assert run(manifest, "--to", "webdataset", "--out", out, "--shard-size", 10) == 0
    seen: Counter[str] = Counter()
    for path in sorted(out.glob("*.tar")):
        assert is_ours(path)
        split, role, number = re.fullmatch(r"(\w+)-(\w+)-(\d{6})\.tar", path.name).groups()  # type: ignore
        read = datasets.load_dataset(
            "webdataset", data_files=str(path), split="train", streaming=True
        ).cast_column("png", datasets.Image(decode=False))
        samples = list(read)
        assert len(samples) == 10 or number != "000000"
        for sample in samples:
            row = patches[sample["__key__"].rsplit("/", 1)[-1]]
            assert (row["role"], row["split"]) == (role, split)
            assert (
                sample["png"]["bytes"] == row["image"]["bytes"] and sample["txt"] == row["caption"]
            )
            seen[row["patch_id"]] += 1
        with tarfile.open(path) as tar:
            entry = next(each for each in tar if each.name.endswith(".json"))
            about = json.load(tar.extractfile(entry))  # type: ignore[arg-type]
            assert entry.mtime == 0 and entry.uname == ""
        check_row(about, patches[about["patch_id"]])
    assert seen == Counter(patches.keys())
    record = json.loads((out / "convert.json").read_text())
    assert record["complete"] and record["manifest_identity"] == open_manifest(manifest).identity


def test_the_package_webdataset_reads_them(manifest: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    out = tmp_path / "shards"
    run(manifest, "--to", "webdataset", "--out", out, "--role", "hr", "--split", "train")
    data = wds.WebDataset(str(out / "train-hr-000000.tar"), shardshuffle=False).decode("rgb8")
    samples = list(data.to_tuple("png", "txt", "json"))
    assert samples and all(picture.shape == (224, 224, 3) for picture, _, _ in samples)
    assert [caption for _, caption, _ in samples] == [about["caption"] for *_, about in samples]


def basicsr_meta_info(folder: Path, listed: Path) -> list[Path]:
    """BasicSR's docs/DatasetPreparation.md: one line a picture, its path and (h,w,c)."""
    lines = [line.rstrip().split(" ") for line in listed.read_text().splitlines()]
    for name, shape in lines:
        picture = cv2.imread(str(folder / name))
        assert shape == "({},{},{})".format(*picture.shape)
    return [folder / name for name, _ in lines]


def test_folders_are_those_of_basicsr(
    manifest: Path, patches: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "folders"
    assert run(manifest, "--to", "folder", "--out", out) == 0
    seen: Counter[str] = Counter()
    for split, role in {(row["split"], row["role"]) for row in patches.values()}:
        pictures = basicsr_meta_info(out / split / role, out / split / f"{role}.txt")
        assert sorted(pictures) == sorted((out / split / role).iterdir())
        for path in pictures:
            row = patches[path.stem]
            assert (row["role"], row["split"]) == (role, split)
            assert path.read_bytes() == row["image"]["bytes"]
            seen[path.stem] += 1
    assert seen == Counter(patches.keys())
    for split in {row["split"] for row in patches.values()}:
        lines = (out / split / "metadata.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            assert (out / split / line.pop("file_name")).is_file()
            check_row(line, patches[line["patch_id"]])
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out / "train"), split="train")
    own = [row for row in patches.values() if row["split"] == "train"]
    assert len(loaded) == len(own)
    assert {row["caption"] for row in loaded} == {row["caption"] for row in own}

    options = yaml.safe_load((out / folder.OPTIONS).read_text())
    train = options["datasets"]["train"]
    assert len(basicsr_meta_info(Path(train["dataroot_gt"][0]), Path(train["meta_info"]))) > 0
    assert options["scale"] * train["lq_size"] + 32 <= 224 and options["scale"] == 4
    assert list(Path(options["datasets"]["val"]["dataroot_lq"][0]).glob("*.png"))
    assert len(train["kernel_list"]) == len(train["kernel_prob"]) == 6


@pytest.mark.parametrize("to", ["webdataset", "folder"])
def test_a_conversion_that_is_stopped_continues_to_the_same_files(
    to: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = ("--to", to, "--shard-size", 8)
    run(manifest, *words, "--out", whole)
    read, count = rows.Rows.read, 0

    def interrupted(self: rows.Rows, wanted: Any) -> Iterator[rows.Patch]:
        for number, patch in enumerate(read(self, wanted)):
            if number == 30:
                raise KeyboardInterrupt
            yield patch

    with monkeypatch.context() as patch:
        patch.setattr(rows.Rows, "read", interrupted)
        assert run(manifest, *words, "--out", stopped) == 130
    files = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    assert not [path for path in files if path.name.endswith(".tmp")]
    done = [path for path in files if path.suffix in (".tar", ".png")]
    assert 0 < len(done) < len([p for p in whole.rglob("*") if p.suffix in (".tar", ".png")])

    def counted(self: rows.Rows, wanted: Any) -> Iterator[rows.Patch]:
        nonlocal count
        for patch in read(self, wanted):
            count += 1
            yield patch

    monkeypatch.setattr(rows.Rows, "read", counted)
    assert run(manifest, *words, "--out", stopped) == 0
    assert all(path.stat().st_mtime_ns == files[path] for path in done)  # not written again
    if to == "webdataset":
        assert count == len(pq.read_table(manifest, columns=["role"])) - 8 * len(done)
    assert digests(stopped) == digests(whole)


def digests(out: Path) -> dict[str, str]:
    """Of all files but the options, which name their folder."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".yml"
    }


def test_foreign_folders_and_files_stay_as_they_are(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    for to in ("webdataset", "folder"):
        assert run(manifest, "--to", to, "--out", out) == 1
        assert "`lasr convert` did not write; nothing was changed" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    (out / "precious.txt").unlink()
    run(manifest, "--to", "folder", "--out", out, "--role", "lr")
    capsys.readouterr()
    for more in (("--to", "webdataset"), ("--to", "folder")):
        assert run(manifest, *more, "--out", out) == 1
        assert "holds a conversion with another" in capsys.readouterr().err
    picture = next((out / "train/lr").iterdir())
    content = picture.read_bytes()
    picture.write_bytes(b"mine")
    assert run(manifest, "--to", "folder", "--out", out, "--role", "lr") == 1
    assert (
        f"{picture}: is another file" in capsys.readouterr().err and picture.read_bytes() == b"mine"
    )
    picture.write_bytes(content[:100])  # as a power failure leaves it
    assert run(manifest, "--to", "folder", "--out", out, "--role", "lr") == 0
    assert picture.read_bytes() == content
    shards = tmp_path / "shards"
    run(manifest, "--to", "webdataset", "--out", shards)
    shard = next(shards.glob("*.tar"))
    shard.write_bytes(b"mine")  # it has the name of a finished shard: it is not touched
    assert (
        run(manifest, "--to", "webdataset", "--out", shards) == 0 and shard.read_bytes() == b"mine"
    )


def test_a_dry_run_writes_nothing(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(manifest, "--to", "folder", "--out", tmp_path / "out", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "train/lr" in text and "MB free" in text and not list(tmp_path.iterdir())


def curated(manifest: Path, target: Path, change: Any) -> Path:
    table = pq.read_table(manifest)
    pq.write_table(change(table), target)
    return target


def test_curated_manifests(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns that SQL left out or made, and rows that nothing can be made of."""
    needed = ["image_id", "role", "size", "caption", "image"]
    plain = curated(manifest, tmp_path / "a.parquet", lambda table: table.select(needed))
    assert run(plain, "--to", "folder", "--out", tmp_path / "a") == 0
    pictures = list((tmp_path / "a").rglob("*.png"))
    assert len(pictures) == len(pq.read_table(manifest)) and all(len(p.stem) == 9 for p in pictures)

    twice = curated(manifest, tmp_path / "b.parquet", lambda table: pa.concat_tables([table] * 2))
    capsys.readouterr()
    assert run(twice, "--to", "folder", "--out", tmp_path / "b") == 1
    assert "holds a patch more than once" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()

    def spoil(table: pa.Table) -> pa.Table:
        some = table.to_pylist()
        some[0]["patch_id"], some[1]["image"] = "../../up", {"bytes": b"GIF", "path": None}
        some[2]["role"], some[3]["caption"], some[3]["distance"] = "none", None, float("nan")
        return pa.Table.from_pylist(some, table.schema)

    odd = curated(manifest, tmp_path / "c.parquet", spoil)
    assert run(odd, "--to", "folder", "--out", tmp_path / "c") == 0
    assert "left out: 1 without a PNG, 1 that are neither" in capsys.readouterr().out
    assert len(list((tmp_path / "c").rglob("*.png"))) == len(pictures) - 2
    assert not (tmp_path / "up.png").exists()
    assert run(odd, "--to", "webdataset", "--out", tmp_path / "d") == 0
    with tarfile.open(sorted((tmp_path / "d").glob("train-*.tar"))[0]) as tar:
        assert all(re.fullmatch(r"[0-9a-f]{32}\.(png|txt|json)", name) for name in tar.getnames())


def test_memory_does_not_grow_with_the_manifest(manifest: Path, tmp_path: Path) -> None:
    """Row groups are read in batches, and those of finished shards are not read at all."""
    table = pq.read_table(manifest)
    some = table.to_pylist()
    with rows_to(tmp_path / "m.parquet", table.schema, {}) as write:
        for copy in range(20):
            write({**row, "patch_id": f"{copy:02}{row['patch_id'][2:]}"} for row in some)
    planned = rows.plan(open_manifest(tmp_path / "m.parquet"), rows.SPLITS, ("lr", "hr"))
    before = pa.total_allocated_bytes()
    most = 0
    for _ in planned.read(lambda group, numbers: np.ones(len(numbers), bool)):
        most = max(most, pa.total_allocated_bytes() - before)
    total = sum(len(row["image"]["bytes"]) for row in some) * 20
    assert most < total / 3
    assert not list(planned.read(lambda group, numbers: np.zeros(len(numbers), bool)))
    assert len(webdataset.names(planned, 100)) == sum(
        -(-planned.count(group) // 100) for group in planned.groups
    )
