"""The manifest's parts as a table of Delta or Iceberg: what commits and reading cost.

Both take the parts where they are: no row is copied, and the digests in the footers stay. Needs
`pip install deltalake 'pyiceberg[sql-sqlite]'`, which nothing else here needs.

    python -m benchmarks.tables --parts 1000 4000
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from schemas.manifest import PATCHES

ROWS = 4  # of a part: what is measured depends on the number of parts
COUNT = "SELECT role, count(*) FROM patches WHERE distance > 0.5 GROUP BY role"


def make_parts(folder: Path, first: int, parts: int) -> list[str]:
    """Write parts with small pictures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(first, first + parts):
        rows = [_row(number * ROWS + index) for index in range(ROWS)]
        files.append(str(folder / f"part-{number:032x}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows, schema=PATCHES), files[-1])
    return files


def _row(number: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for column in PATCHES:
        if pa.types.is_string(column.type):
            values[column.name] = f"{number:064x}"
        elif pa.types.is_floating(column.type):
            values[column.name] = number % 1000 / 1000
        elif pa.types.is_integer(column.type):
            values[column.name] = number % 100
        elif pa.types.is_list(column.type):
            text = pa.types.is_string(column.type.value_type)
            values[column.name] = ["word" if text else 0.5]
    picture = {"bytes": number.to_bytes(8, "little") * 250, "path": None}
    return values | {"image": picture, "role": ("lr", "hr")[number % 2]}


def as_folder(folder: Path, files: list[str], more: list[str]) -> dict[str, Callable[[], Any]]:
    return {
        "read": lambda: _ask(ds.dataset([*files, *more], schema=PATCHES)),
        "read by DuckDB's own reader": lambda: duckdb.sql(
            COUNT.replace("patches", f"read_parquet('{folder}/*.parquet')")
        ).fetchall(),
    }


def as_delta(folder: Path, files: list[str], more: list[str]) -> dict[str, Callable[[], Any]]:
    import deltalake

    def add(new: list[str]) -> None:
        from deltalake.transaction import AddAction, create_table_with_add_actions

        now = int(time.time() * 1000)
        actions = [
            AddAction(
                Path(f).name, Path(f).stat().st_size, {}, now, True, f'{{"numRecords": {ROWS}}}'
            )
            for f in new
        ]
        schema = deltalake.Schema.from_arrow(PATCHES)
        if new is files:
            create_table_with_add_actions(str(folder), schema, actions, "error")
        else:
            table = deltalake.DeltaTable(str(folder))
            table.create_write_transaction(actions, "append", schema)

    return {
        "first commit": lambda: add(files),
        "commit of one tenth more": lambda: add(more),
        "read": lambda: _ask(deltalake.DeltaTable(str(folder)).to_pyarrow_dataset()),
    }


def as_iceberg(folder: Path, files: list[str], more: list[str]) -> dict[str, Callable[[], Any]]:
    from pyiceberg.catalog.sql import SqlCatalog

    uri = f"sqlite:///{folder.parent}/catalog.db"
    catalog = SqlCatalog("one", uri=uri, warehouse=f"file://{folder.parent}/iceberg")
    catalog.create_namespace("lasr")
    # Iceberg knows no integers of 8 or 16 bits.
    fields = [f.with_type(pa.int32()) if _is_short(f.type) else f for f in PATCHES]
    table = catalog.create_table("lasr.patches", pa.schema(fields))

    def read() -> Any:
        scan = catalog.load_table("lasr.patches").scan(
            row_filter="distance > 0.5", selected_fields=("role", "distance")
        )
        patches = scan.to_arrow()  # noqa: F841 - DuckDB finds it by name
        return duckdb.sql(COUNT).fetchall()

    return {
        "first commit": lambda: table.add_files(files, check_duplicate_files=False),
        "commit of one tenth more": lambda: table.add_files(more, check_duplicate_files=False),
        "read": read,
    }


def _is_short(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) and kind.bit_width < 32)


def _ask(patches: ds.Dataset) -> Any:
    return duckdb.sql(COUNT).fetchall()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, nargs="+", default=[1000], help="parts of a manifest")
    for parts in parser.parse_args(argv).parts:
        answers = set[str]()
        for name, store in (("folder", as_folder), ("delta", as_delta), ("iceberg", as_iceberg)):
            top = Path(tempfile.mkdtemp())
            files = make_parts(top / "patches.parquet", 0, parts)
            more = make_parts(top / "patches.parquet", parts, parts // 10)
            size = _size(top)
            for what, work in store(top / "patches.parquet", files, more).items():
                wall, cpu = time.perf_counter(), time.process_time()
                answer = work()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                print(f"{parts:>6} parts  {name:8} {what:28} {wall:7.2f} s, CPU {cpu:7.2f} s")
                answers |= {str(sorted(answer))} if isinstance(answer, list) else set()
            metadata = (_size(top) - size) / len([*files, *more])
            print(f"{parts:>6} parts  {name:8} metadata {metadata:6.0f} bytes a part", flush=True)
            shutil.rmtree(top)
        if len(answers) != 1:
            sys.exit(f"the tables answer differently: {answers}")


def _size(top: Path) -> int:
    return sum(file.stat().st_size for file in top.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
