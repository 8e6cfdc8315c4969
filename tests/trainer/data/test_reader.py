"""Rows by their number: the right ones, nothing else read, little held, failures said clearly."""

import errno
import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.manifest import ManifestError, open_manifest
from tests.support.damage import with_a_changed_row_group
from trainer.data import reader as module
from trainer.data.reader import COLUMNS, BadRow, Reader


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
    """The rows as they are stored; of bad ones, no bytes and the reason."""
    return [
        (b"", answer.reason) if isinstance(answer, BadRow) else (answer[0].tobytes(), answer[1])
        for answer in source.read(rows)
    ]


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
    found(source, list(range(len(source.index.role))))
    assert column_bytes(parts, pixels) <= counted.count
    assert counted.count <= column_bytes(parts, everything)  # each row group once


def test_memory_holds_what_may_be_kept_and_no_more(manifest: Path, tmp_path: Path) -> None:
    cut = sql(manifest, "*", tmp_path / "m.parquet")
    pq.write_table(pq.read_table(cut), tmp_path / "cut.parquet", row_group_size=5)
    source = reader(tmp_path / "cut.parquet", cache_rows=10)
    for row in range(len(source.index.role)):
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
        ("* REPLACE ('far' AS role)", "no 'lr' rows"),
        ("* REPLACE (NULL AS role)", "no 'lr' rows"),
    ],
)
def test_what_cannot_be_trained_on_is_said_at_once(
    manifest: Path, tmp_path: Path, select: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        reader(sql(manifest, select, tmp_path / "m.parquet"))


@pytest.mark.parametrize(
    ("select", "rank", "reason", "order"),
    [
        ("28::BIGINT AS size", 2, "is an 'lr' patch of another size than 56 pixels", True),
        ("(if(rank = 2, 4294967352, size))::BIGINT AS size", 2, "of another size", True),
        ("if(rank = 1, 'far', role) AS role", 1, "is neither 'lr' nor 'hr'", False),
        ("if(rank = 1, NULL, role) AS role", 1, "is neither 'lr' nor 'hr'", False),
        ("if(rank = 2, NULL, caption) AS caption", 2, "has no caption", True),
        ("if(rank = 2, ' ', caption) AS caption", 2, "has no caption", True),
        ("if(rank = 3, NULL, image_id) AS image_id", 3, "has no image_id", True),
        (
            "{'bytes': if(rank = 2, NULL, image.bytes), 'path': image.path} AS image",
            2, "has no picture", True,
        ),
        ("if(rank = 2, NULL, image) AS image", 2, "has no picture", True),
    ],
)  # fmt: skip
def test_bad_rows_say_what_they_lack_and_the_others_are_read(
    manifest: Path, tmp_path: Path, select: str, rank: int, reason: str, order: bool
) -> None:
    source = reader(sql(manifest, f"* REPLACE ({select})", tmp_path / "m.parquet"))
    rows = [r for f in open_manifest(manifest).files for r in pq.read_table(f).to_pylist()]
    everything = select.startswith("28")
    for row, answer in enumerate(found(source, list(range(len(rows))))):
        if rows[row]["rank"] == rank or everything:
            content, text = answer
            assert not content and (reason in text or rows[row]["role"] == "hr"), text
        else:
            assert answer == (rows[row]["image"]["bytes"], rows[row]["caption"])
    assert (source.index.role >= 0).all() == order  # without a role a row is in no order


def test_an_empty_manifest_is_refused(manifest: Path, tmp_path: Path) -> None:
    duckdb.sql(f"COPY (SELECT * FROM '{manifest}/*.parquet' LIMIT 0) TO '{tmp_path}/m.parquet'")
    with pytest.raises(ManifestError, match="no rows"):
        reader(tmp_path / "m.parquet")


def test_a_damaged_file_gives_bad_rows_and_one_that_is_gone_an_error(
    manifest: Path, tmp_path: Path
) -> None:
    one = sql(manifest, "*", tmp_path / "m.parquet")
    source, whole = reader(one), one.read_bytes()
    one.write_bytes(b"x" * 1000)
    ((content, reason),) = found(source, [0])
    assert not content and reason.startswith("is in a row group that cannot be read")
    footer = 8 + int.from_bytes(whole[-8:-4], "little")
    one.write_bytes(b"PAR1" + b"x" * (len(whole) - footer - 4) + whole[-footer:])
    with pytest.raises(ManifestError, match=r"rows are in damaged parts of its files, and no 'lr'"):
        reader(one)
    one.unlink()
    source._cache.clear()
    with pytest.raises(ManifestError, match=r"m\.parquet: cannot be read .*build the manifest"):
        found(source, [0])


@pytest.mark.parametrize("name", ["caption", "role", "image.bytes"])
@pytest.mark.parametrize("large", [False, True])
def test_a_page_that_fails_its_checksum_loses_its_row_group_alone(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: bool
) -> None:
    """Of every column in its own way: captions are read twice, roles once, pixels when needed."""
    if large:
        monkeypatch.setattr(module, "LARGE_ROW_GROUP", 8)
        monkeypatch.setattr(module, "ROW_GROUP", 5)
    path, expected = tmp_path / "m.parquet", stored(manifest)
    table = pq.read_table(sql(manifest, "*", tmp_path / "plain.parquet"))
    pq.write_table(
        table, path, row_group_size=12, compression="none", use_dictionary=False,
        write_page_checksum=True,
    )  # fmt: skip
    footer = pq.read_metadata(path).row_group(1)
    columns = [footer.column(i) for i in range(footer.num_columns)]
    (column,) = (c for c in columns if c.path_in_schema == name)
    whole = bytearray(path.read_bytes())
    whole[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(whole)
    source = reader(path)
    for row, answer in enumerate(found(source, list(range(len(expected))))):
        if 12 <= row < 24:
            assert not answer[0] and re.match("is (in a|neither)", answer[1]), answer
        else:
            assert answer == expected[row]
    assert ((source.index.role < 0).nonzero()[0].tolist() == [*range(12, 24)]) == (name == "role")


def test_a_row_group_that_fails_its_digest_is_lost_alone(manifest: Path, tmp_path: Path) -> None:
    path = with_a_changed_row_group(manifest, tmp_path / "m.parquet", group=1, rows=12)
    expected = stored(manifest)
    for row, answer in enumerate(found(reader(path), list(range(len(expected))))):
        if 12 <= row < 24:
            assert not answer[0] and "row group 1 has changed" in answer[1]
        else:
            assert answer == expected[row]


def test_rows_are_named_by_part_number_and_patch_id(manifest: Path, tmp_path: Path) -> None:
    source, row = reader(manifest), 0
    for file in open_manifest(manifest).files:
        for number, patch_id in enumerate(pq.read_table(file)["patch_id"].to_pylist()):
            if number % 7 == 0:
                assert source.locate(row) == (file.name, number, patch_id)
            row += 1
    curated = sql(manifest, "* EXCLUDE (patch_id)", tmp_path / "m.parquet")
    assert reader(curated).locate(3) == ("m.parquet", 3, None)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (pa.ArrowMemoryError("malloc of size 9 failed"), MemoryError),
        (OSError(errno.EMFILE, "Too many open files"), ManifestError),
    ],
)
@pytest.mark.parametrize("name", ["read_row_group", "iter_batches"])
def test_an_error_of_the_machine_is_no_damage(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception],
    name: str,
) -> None:  # fmt: skip
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    good, source = stored(manifest)[0], reader(manifest)
    monkeypatch.setattr(pq.ParquetFile, name, fails)
    with pytest.raises(raised):
        found(reader(manifest) if name == "iter_batches" else source, [0])
    monkeypatch.undo()
    assert found(source, [0]) == [good]
