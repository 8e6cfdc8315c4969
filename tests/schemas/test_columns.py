"""Manifests as other programs write them: the same rows, or one line that says what is wrong."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.query.views import connect
from schemas.columns import convert
from schemas.manifest import PATCHES, ManifestError, open_manifest
from tests.support.bad_rows import one_table
from tests.support.writers import REFUSED, SAME_ROWS
from trainer.data.dataset import COLUMNS, Patches
from trainer.data.index import ROLES
from trainer.features import sample

NUMBERS = "patch_id, image_id, role, x + size, y + size, rank, distance, words, split"


@pytest.fixture(scope="module")
def rows(manifest: Path) -> pa.Table:
    """The rows of a manifest, with positions that fit into 8 bit."""
    table = one_table(manifest).combine_chunks()
    for name in ("x", "y"):
        small = pa.array([value % 256 for value in table[name].to_pylist()], pa.int32())
        table = table.set_column(table.schema.get_field_index(name), PATCHES.field(name), small)
    return table


@pytest.fixture(scope="module")
def plain(rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "m.parquet"
    pq.write_table(rows, path)
    return path


@pytest.mark.parametrize("writer", SAME_ROWS)
def test_the_same_rows_in_other_types_are_the_same_rows(
    rows: pa.Table, plain: Path, tmp_path: Path, writer: str
) -> None:
    path = tmp_path / "m.parquet"
    SAME_ROWS[writer](rows, path)
    manifest = open_manifest(path)

    # Every value, after conversion.
    tables = [pq.ParquetFile(file).read() for file in manifest.files]
    found = pa.concat_tables([convert(table, PATCHES) for table in tables])
    for name in set(PATCHES.names) - {"image", "distance"}:
        assert found[name].type == PATCHES.field(name).type
        assert found[name].to_pylist() == rows[name].to_pylist(), name
    assert found["distance"].to_pylist() == pytest.approx(rows["distance"].to_pylist())
    pngs = [[image["bytes"] for image in t["image"].to_pylist()] for t in (found, rows)]
    assert pngs[0] == pngs[1]

    # The trainer, DuckDB's views and the choice of figure 7.
    expected, data = (Patches(open_manifest(x, COLUMNS)) for x in (plain, path))
    assert not len(data.reader.index.faulty)
    for role in ROLES:
        numbers = expected.rows[role]
        assert data.rows[role].tolist() == numbers.tolist()
        for a, b in zip(expected.pixels(role, numbers), data.pixels(role, numbers), strict=True):
            assert np.array_equal(a, b)
        captions = [answer[1] for answer in data.reader.read(numbers.tolist())]  # type: ignore[index]
        assert captions == rows["caption"].take(numbers).to_pylist()
    if len(manifest.files) == 1:  # its row groups are shuffled
        assert np.array_equal(data.epoch(1), expected.epoch(1))
    answers = []
    for one in (plain, path):
        with connect(one) as connection:
            answers.append(connection.sql(f"SELECT {NUMBERS} FROM patches").fetchall())
    for a, b in zip(*answers, strict=True):
        assert a[:6] + a[7:] == b[:6] + b[7:] and a[6] == pytest.approx(b[6])
    first, second = (sample.choose(open_manifest(x, sample.COLUMNS), 8, 0) for x in (plain, path))
    if len(manifest.files) == 1:  # its row groups are drawn
        assert second["patch_id"].to_pylist() == first["patch_id"].to_pylist()
    assert any(label for label in sample.word_labels(second, None))


@pytest.mark.parametrize("writer", REFUSED)
def test_what_cannot_be_read_as_it_is_is_one_line(
    rows: pa.Table, tmp_path: Path, writer: str
) -> None:
    write, said = REFUSED[writer]
    write(rows, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=said) as refused:
        open_manifest(tmp_path / "m.parquet")
    assert "\n" not in str(refused.value) and refused.value.fix


def test_columns_that_only_memory_holds_are_converted() -> None:
    """As Arrow data of other programs, which Parquet would store in another way."""
    words, codes = pa.array(["lr", "hr"]).cast(pa.string_view()), pa.array([1, None, 0], pa.int8())
    views = pa.DictionaryArray.from_arrays(codes, words)
    structs = pa.array([{"bytes": b"a", "more": 1}, None, {"bytes": None, "more": 2}])
    found = convert(pa.table({"role": views, "image": structs, "words": pa.nulls(3)}), PATCHES)
    assert found.to_pydict() == {
        "role": ["hr", None, "lr"],
        "image": [{"bytes": b"a", "path": None}, None, {"bytes": None, "path": None}],
        "words": [None] * 3,
    }
    assert found.schema.types == [PATCHES.field(name).type for name in found.schema.names]
    sliced = convert(pa.table({"role": views, "image": structs}).slice(1), PATCHES)
    assert sliced["role"].to_pylist() == [None, "lr"] and sliced["image"][0].as_py() is None
