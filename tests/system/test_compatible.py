"""The manifest in the libraries of the field: opened as it is, and a subset of theirs trains."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from PIL import Image

import trainer.run
from schemas.manifest import PATCHES, open_manifest

LEAST = 0.03  # texture of the subset


def with_datasets(manifest: Path, target: Path, cache: Path) -> list[str]:
    rows = datasets.load_dataset(
        "parquet", data_files=f"{manifest}/*.parquet", split="train", cache_dir=str(cache)
    )
    assert isinstance(rows.features["image"], datasets.Image)
    for row in rows:
        assert isinstance(row["image"], Image.Image) and row["image"].size == (row["size"],) * 2
    chosen = rows.filter(lambda texture: texture > LEAST, input_columns="texture")
    chosen.to_parquet(target)
    return list(chosen["patch_id"])


def with_pandas(manifest: Path, target: Path, cache: Path) -> list[str]:
    table = pd.read_parquet(manifest)
    for size, image in zip(table["size"], table["image"], strict=True):
        assert Image.open(io.BytesIO(image["bytes"])).size == (size, size)
    chosen = table[table["texture"] > LEAST]
    chosen.to_parquet(target)
    return list(chosen["patch_id"])


def with_polars(manifest: Path, target: Path, cache: Path) -> list[str]:
    table = pl.scan_parquet(f"{manifest}/*.parquet")
    assert table.collect_schema().names() == PATCHES.names
    chosen = table.filter(pl.col("texture") > LEAST).collect()
    for size, image in chosen.select("size", "image").iter_rows():
        assert Image.open(io.BytesIO(image["bytes"])).size == (size, size)
    chosen.write_parquet(target)
    return chosen["patch_id"].to_list()


def with_pyarrow(manifest: Path, target: Path, cache: Path) -> list[str]:
    table = ds.dataset(manifest)
    assert table.schema.names == PATCHES.names
    chosen = table.to_table(filter=pc.field("texture") > LEAST)
    target.mkdir()
    ds.write_dataset(chosen, target, format="parquet")
    names: list[str] = chosen["patch_id"].to_pylist()
    return names


def with_duckdb(manifest: Path, target: Path, cache: Path) -> list[str]:
    chosen = f"FROM '{manifest}/*.parquet' WHERE texture > {LEAST}"
    duckdb.sql(f"COPY ({chosen}) TO '{target}' (FORMAT parquet)")
    return [name for (name,) in duckdb.sql(f"SELECT patch_id {chosen}").fetchall()]


@pytest.mark.parametrize(
    "curate", [with_datasets, with_pandas, with_polars, with_pyarrow, with_duckdb]
)
def test_a_subset_written_by_each_trains(
    manifest: Path, tmp_path: Path, curate: Callable[[Path, Path, Path], list[str]]
) -> None:
    mine, run = tmp_path / "mine.parquet", tmp_path / "run"
    names = curate(manifest, mine, tmp_path / "cache")
    rows = stored(manifest)
    assert 0 < len(names) < len(rows)
    assert sorted(names) == sorted(name for name, row in rows.items() if row["texture"] > LEAST)
    assert stored(mine) == {name: rows[name] for name in names}
    argv = [
        "--manifest", str(mine), "--profile", "test", "--out", str(run), "--steps", "2",
        "--batch-size", "2", "--log-every", "1", "--workers", "1",
    ]  # fmt: skip
    assert trainer.run.main(argv) == 0
    stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in stats] == [1, 2] and (run / "model.safetensors").is_file()


def stored(manifest: Path) -> dict[str, dict[str, Any]]:
    """What training reads, by patch_id; also checks that all columns have the manifest's types."""
    files = [str(file) for file in open_manifest(manifest).files]
    table: pa.Table = ds.dataset(files).to_table()
    columns = ["image_id", "role", "size", "texture", "caption", "image", "phash", "split"]
    rows = zip(*(table[name].to_pylist() for name in ("patch_id", *columns)), strict=True)
    return {name: dict(zip(columns, values, strict=True)) for name, *values in rows}
