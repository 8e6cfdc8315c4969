"""A manifest as other programs write it: the same rows in other types and layouts."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

Writer = Callable[[pa.Table, Path], object]


def retyped(**types: pa.DataType) -> Writer:
    """Write with pyarrow, columns in other types."""

    def write(table: pa.Table, path: Path) -> None:
        for name, kind in types.items():
            index = table.schema.get_field_index(name)
            column = pa.array(table[name].to_pylist(), kind)
            table = table.set_column(index, pa.field(name, kind), column)
        pq.write_table(table, path)

    return write


def _dictionaries(table: pa.Table, path: Path) -> None:
    for name in ("role", "caption", "image_id", "strategy"):
        column = table[name].dictionary_encode()
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, path)


def _decimals(table: pa.Table, path: Path) -> None:
    """Rounded, but for the columns that nothing trains on."""
    values = [Decimal(repr(x)) for x in table["distance"].to_pylist()]
    column = pa.array(values, pa.decimal128(30, 20))
    pq.write_table(
        table.set_column(table.schema.get_field_index("distance"), "distance", column), path
    )


def _image(*names: str) -> Writer:
    def write(table: pa.Table, path: Path) -> None:
        images = [{name: image[name] for name in names} for image in table["image"].to_pylist()]
        kinds = {"bytes": pa.binary(), "path": pa.string()}
        column = pa.array(images, pa.struct([(name, kinds[name]) for name in names]))
        pq.write_table(
            table.set_column(table.schema.get_field_index("image"), "image", column), path
        )

    return write


def _pandas(table: pa.Table, path: Path) -> None:
    pd.DataFrame(table.to_pylist()).to_parquet(path)


def _polars(level: pl.CompatLevel) -> Writer:
    def write(table: pa.Table, path: Path) -> None:
        arrow = pl.from_arrow(table).to_arrow(compat_level=level)  # type: ignore[union-attr]
        pq.write_table(arrow, path)

    return write


def _polars_itself(table: pa.Table, path: Path) -> None:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    frame.with_columns(pl.col("role").cast(pl.Categorical)).write_parquet(path)


def _duckdb_arrow(table: pa.Table, path: Path) -> None:
    connection = duckdb.connect()
    connection.execute("SET produce_arrow_string_view = true")
    connection.execute("SET arrow_output_list_view = true")
    connection.register("t", table)
    pq.write_table(connection.sql("FROM t").to_arrow_table(), path)


def _duckdb(table: pa.Table, path: Path) -> None:
    connection = duckdb.connect()
    connection.register("t", table)
    sql = "SELECT * REPLACE (x::UTINYINT AS x, y::UBIGINT AS y, distance::DOUBLE AS distance)"
    connection.execute(f"COPY ({sql} FROM t) TO '{path}' (FORMAT parquet)")


def _shuffled(table: pa.Table, path: Path) -> None:
    table = table.append_column("mine", pa.array(range(len(table))))
    pq.write_table(table.select(sorted(table.schema.names, reverse=True)), path)


def _spark(table: pa.Table, path: Path) -> None:
    """A folder with files that are no parts, and one part without rows."""
    path.mkdir()
    pq.write_table(table.slice(0, 20), path / "part-00000-a.snappy.parquet", compression="snappy")
    pq.write_table(table.slice(0, 0), path / "part-00001-b.snappy.parquet", compression="snappy")
    pq.write_table(table.slice(20), path / "part-00002-c.snappy.parquet", compression="snappy")
    (path / "_SUCCESS").touch()
    pq.write_metadata(table.schema, path / "_metadata")
    pq.write_metadata(table.schema, path / "_common_metadata")
    (path / ".part-00000-a.snappy.parquet.crc").write_bytes(b"crc")


def _hive_above(table: pa.Table, path: Path) -> None:
    """A folder above that looks like a partition is no column."""
    folder = path.with_name(f"role=none-{path.name}")
    folder.mkdir()
    pq.write_table(table, folder / "m.parquet")
    path.symlink_to(folder)


_VIEW, _BINARY_VIEW = pa.string_view(), pa.binary_view()

SAME_ROWS: dict[str, Writer] = {
    "pyarrow": retyped(),
    "large": retyped(
        caption=pa.large_string(), words=pa.large_list(pa.large_string()),
        image=pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
    ),
    "views": retyped(
        caption=_VIEW, role=_VIEW, image_id=_VIEW, patch_id=_VIEW, split=_VIEW,
        image=pa.struct([("bytes", _BINARY_VIEW), ("path", _VIEW)]),
    ),
    "list views": retyped(words=pa.list_view(pa.string()), word_scores=pa.list_view(pa.float32())),
    "large list views": retyped(words=pa.large_list_view(pa.string())),
    "fixed lists": retyped(words=pa.list_(pa.string(), 24)),
    "dictionaries": _dictionaries,
    "doubles": retyped(distance=pa.float64(), texture=pa.float64(), size=pa.int64()),
    "decimals": _decimals,
    "short integers": retyped(size=pa.uint8(), x=pa.uint8(), y=pa.uint16(), rank=pa.uint8()),
    "unsigned": retyped(size=pa.uint64(), x=pa.uint64(), image_width=pa.uint32()),
    "bytes alone": _image("bytes"),
    "path first": _image("path", "bytes"),
    "pandas": _pandas,
    "polars, old": _polars(pl.CompatLevel.oldest()),
    "polars, newest": _polars(pl.CompatLevel.newest()),
    "polars itself": _polars_itself,
    "DuckDB": _duckdb,
    "DuckDB through Arrow": _duckdb_arrow,
    "more columns in another order": _shuffled,
    "Spark": _spark,
    "a partition above": _hive_above,
}  # fmt: skip


def _hive(table: pa.Table, path: Path) -> None:
    connection = duckdb.connect()
    connection.register("t", table)
    connection.execute(f"COPY (FROM t) TO '{path}' (FORMAT parquet, PARTITION_BY (role))")


def _hive_beside_parts(table: pa.Table, path: Path) -> None:
    """Parts at both levels: those below would be passed over."""
    (path / "split=val").mkdir(parents=True)
    pq.write_table(table.slice(0, 20), path / "a.parquet")
    pq.write_table(table.slice(20).drop_columns(["split"]), path / "split=val" / "b.parquet")


def _metadata(text: bytes) -> Writer:
    def write(table: pa.Table, path: Path) -> None:
        pq.write_table(table.replace_schema_metadata({b"la-sr": text}), path)

    return write


def _text(table: pa.Table, path: Path) -> None:
    column = table["size"].cast(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("size"), "size", column), path)


def _twice(table: pa.Table, path: Path) -> None:
    pq.write_table(table.append_column("caption", table["caption"]), path)


def _cut(table: pa.Table, path: Path) -> None:
    _spark(table, path)
    (path / "part-00003.parquet").touch()


# Another writer, and what the one line says.
REFUSED: dict[str, tuple[Writer, str]] = {
    "path alone": (_image("path"), r"column 'image' is struct<path: string>, expected"),
    "text for numbers": (_text, r"column 'size' is string, expected int32"),
    "floats for integers": (retyped(size=pa.float64()), r"column 'size' is double, expected"),
    "bytes for text": (retyped(caption=pa.binary()), r"column 'caption' is binary, expected"),
    "hive": (_hive, r"is partitioned into folders such as role=hr, and rows there lack the column"),
    "hive beside parts": (_hive_beside_parts, r"partitioned into folders such as split=val"),
    "metadata": (_metadata(b"no JSON"), r"its metadata 'la-sr' cannot be read"),
    "nested metadata": (_metadata(b"[" * 100_000), r"its metadata 'la-sr' cannot be read"),
    "a name twice": (_twice, r"two columns are named 'caption'"),
    "an empty file": (_cut, r"part-00003\.parquet: damaged, .*it is empty"),
}
