"""Rows by their number: the right ones, nothing else read, little held, failures said clearly."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from schemas.manifest import ManifestError, open_manifest
from trainer.data import reader as module
from trainer.data.reader import COLUMNS, Reader, decode


def reader(manifest: Path, cache_rows: int = 10**6) -> Reader:
    return Reader(open_manifest(manifest, COLUMNS), cache_rows)


def stored(manifest: Path) -> list[tuple[bytes, str]]:
    files = open_manifest(manifest).files
    rows = [r for f in files for r in pq.read_table(f, columns=["image", "caption"]).to_pylist()]
    return [(row["image"]["bytes"], row["caption"]) for row in rows]


def sql(
    manifest: Path,
    select: str,
    target: Path,
) -> Path:
    duckdb.sql(f"COPY (SELECT {select} FROM '{manifest}/*.parquet') TO '{target}' (FORMAT parquet)")
    return target


def found(source: Reader, rows: list[int]) -> list[tuple[bytes, str]]:
    return [(content.tobytes(), caption) for content, caption in source.read(rows)]


def test_rows_in_any_order_and_from_many_threads(manifest: Path) -> None:
    source, expected = reader(manifest, cache_rows=1), stored(manifest)
    orders = [np.random.default_rng(i).permutation(len(expected)).tolist() for i in range(8)]
    with ThreadPoolExecutor(4) as executor:
        for rows, answer in zip(
            orders, executor.map(lambda r: found(source, r), orders), strict=True
        ):
            assert answer == [expected[row] for row in rows]


class CountingFile(io.FileIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        content = super().read(size) or b""
        CountingFile.count += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        size = super().readinto(buffer) or 0
        CountingFile.count += size
        return size


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountingFile]:
    opened = pq.ParquetFile
    monkeypatch.setattr(
        module.pq, "ParquetFile", lambda file, **options: opened(CountingFile(file), **options)
    )
    CountingFile.count = 0
    return CountingFile


def leaves(manifest: Path) -> list[str]:
    schema = pq.read_metadata(open_manifest(manifest).files[0]).schema
    return [schema.column(i).path for i in range(len(schema))]


def column_bytes(manifest: Path, paths: list[str], groups: slice = slice(None)) -> int:
    """What Parquet's footers say that columns take."""
    total = 0
    for file in open_manifest(manifest).files:
        footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups)[groups]:
            columns = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
            total += sum(c.total_compressed_size for c in columns if c.path_in_schema in paths)
    return total


def test_nothing_is_read_that_is_not_used(
    manifest: Path, tmp_path: Path, counted: type[CountingFile]
) -> None:
    cut = sql(manifest, "*", tmp_path / "m.parquet")
    parts = tmp_path / "parts"
    parts.mkdir()
    table = pq.read_table(cut)
    noise = np.random.default_rng(0).bytes
    table = table.append_column("more", [[noise(20_000) for _ in range(len(table))]])
    pq.write_table(table, parts / "a.parquet", row_group_size=7)
    counted.count = 0
    source = reader(parts)
    # Parquet's reader also takes small columns that lie between two wanted ones: one read, not two.
    pixels = ["image.bytes"]
    light = [path for path in leaves(parts) if path not in ("image.bytes", "more")]
    everything = light + pixels
    assert 0 < counted.count <= column_bytes(parts, light)  # no pixel before the first step
    counted.count, second = 0, slice(1, 2)
    found(source, [8, 9, 13])
    found(source, [7, 12])  # of the same row group, which was kept
    assert column_bytes(parts, pixels, second) <= counted.count
    assert counted.count <= column_bytes(parts, everything, second)
    found(source, list(range(len(source.is_lr))))
    assert column_bytes(parts, pixels) <= counted.count
    assert counted.count <= column_bytes(parts, everything)  # each row group once


def test_memory_holds_what_may_be_kept_and_no_more(manifest: Path, tmp_path: Path) -> None:
    cut = sql(manifest, "*", tmp_path / "m.parquet")
    pq.write_table(pq.read_table(cut), tmp_path / "cut.parquet", row_group_size=5)
    source = reader(tmp_path / "cut.parquet", cache_rows=10)
    for row in range(len(source.is_lr)):
        found(source, [row])
        assert len(source._cache) <= 2


def test_many_threads_read_a_row_group_once(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, loads, together = reader(manifest), [], threading.Barrier(4)
    load = source._load
    monkeypatch.setattr(source, "_load", lambda chunk: loads.append(chunk) or load(chunk))  # type: ignore[func-returns-value]

    def use(row: int) -> None:
        together.wait()
        found(source, [row])

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(use, range(4)))
    assert len(loads) == 1


@pytest.mark.parametrize("rows_in_group", [20, 33, 10**6])
def test_large_row_groups_are_copied_in_pieces(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_in_group: int
) -> None:
    monkeypatch.setattr(module, "LARGE_ROW_GROUP", 16)
    monkeypatch.setattr(module, "ROW_GROUP", 8)
    one = sql(manifest, "*", tmp_path / "m.parquet")
    parts = tmp_path / "parts"
    parts.mkdir()
    whole = pq.read_table(one)
    pq.write_table(whole.slice(0, 13), parts / "a.parquet", row_group_size=6)  # small: as it is
    pq.write_table(whole.slice(13), parts / "b.parquet", row_group_size=rows_in_group)
    source, expected = reader(parts, cache_rows=8), stored(manifest)
    assert [chunk.rows for chunk in source.chunks][:3] == [6, 6, 1]
    assert max(chunk.rows for chunk in source.chunks) == 8
    assert sum(chunk.rows for chunk in source.chunks) == len(expected)
    rows = np.random.default_rng(0).permutation(len(expected)).tolist()
    assert found(source, rows) == [expected[row] for row in rows]
    assert list(source._copies) == [1]


def test_a_copy_without_room_says_so(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "LARGE_ROW_GROUP", 16)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ManifestError, match=r"cannot be copied to .*nowhere.*TMPDIR"):
        found(reader(manifest), [0])


def test_what_polars_writes_can_be_read(manifest: Path, tmp_path: Path) -> None:
    pl.read_parquet(f"{manifest}/*.parquet").write_parquet(tmp_path / "polars.parquet")
    rows = list(range(0, len(stored(manifest)), 5))
    expected = [stored(manifest)[row] for row in rows]
    assert found(reader(tmp_path / "polars.parquet"), rows) == expected


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("* REPLACE ('lr' AS role, 56::INTEGER AS size)", "no 'hr' rows"),
        ("* REPLACE ('hr' AS role, 224::INTEGER AS size)", "no 'lr' rows"),
        ("* REPLACE (28::INTEGER AS size)", "row 0 is an 'lr' patch of another size than 56"),
        ("* REPLACE (if(rank = 1, 'far', role) AS role)", "row 1 is neither 'lr' nor 'hr'"),
        ("* REPLACE (if(rank = 1, NULL, role) AS role)", "row 1 is neither 'lr' nor 'hr'"),
        ("* REPLACE (if(rank = 2, NULL, caption) AS caption)", "row 2 has no caption"),
        ("* REPLACE (if(rank = 2, ' ', caption) AS caption)", "row 2 has no caption"),
        ("* REPLACE (if(rank = 3, NULL, image_id) AS image_id)", "row 3 has no image_id"),
    ],
)
def test_what_cannot_be_trained_on_is_said_at_once(
    manifest: Path, tmp_path: Path, select: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        reader(sql(manifest, select, tmp_path / "m.parquet"))


def test_an_empty_manifest_is_refused(manifest: Path, tmp_path: Path) -> None:
    duckdb.sql(f"COPY (SELECT * FROM '{manifest}/*.parquet' LIMIT 0) TO '{tmp_path}/m.parquet'")
    with pytest.raises(ManifestError, match="no rows"):
        reader(tmp_path / "m.parquet")


def test_a_missing_picture_names_its_row(manifest: Path, tmp_path: Path) -> None:
    struct = "{'bytes': if(rank = 2, NULL, image.bytes), 'path': image.path}"
    source = reader(sql(manifest, f"* REPLACE ({struct} AS image)", tmp_path / "m.parquet"))
    assert len(found(source, [0, 1])) == 2
    with pytest.raises(ManifestError, match="row 2 has no picture; leave"):
        found(source, [0, 2])


def test_damaged_files_are_named(manifest: Path, tmp_path: Path) -> None:
    one = sql(manifest, "*", tmp_path / "m.parquet")
    source, whole = reader(one), one.read_bytes()
    one.write_bytes(b"x" * 1000)
    with pytest.raises(ManifestError, match=r"(?s)m\.parquet: cannot be read .*build the manifest"):
        found(source, [0])
    footer = 8 + int.from_bytes(whole[-8:-4], "little")
    one.write_bytes(b"PAR1" + b"x" * (len(whole) - footer - 4) + whole[-footer:])
    with pytest.raises(ManifestError, match=r"(?s)m\.parquet: cannot be read .*build the manifest"):
        reader(one)


@pytest.mark.parametrize(
    ("content", "message"), [(b"no PNG", "no picture"), (None, "224x224 pixels, expected a 56x56")]
)
def test_pictures_of_other_sizes_are_refused(
    manifest: Path, content: bytes | None, message: str
) -> None:
    source = reader(manifest)
    row = int(np.flatnonzero(~source.is_lr)[0])
    content = content or found(source, [row])[0][0]
    with pytest.raises(ManifestError, match=f"row {row}: {message}"):
        decode(np.frombuffer(content, np.uint8), "lr", row)
