"""Write an answer as a manifest to train on."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.ownership import own_path
from pipeline.sidecars import write_sidecars
from pipeline.storage import StoragePath
from schemas.catalogue import IMAGES, companion, images_path
from schemas.digest import check_parquet
from schemas.manifest import PATCH_SIZE, Manifest, check_columns, damage_named, digest_of
from schemas.parquet import ROW_GROUP, encoded_metadata, rows_to, table_writer

NEEDED = ("image_id", "role", "size", "caption", "image")  # the columns that training needs


def save(
    answer: duckdb.DuckDBPyRelation, manifest: Manifest, sql: str, target: Path, stop: Event
) -> Counter[str]:
    """Write a manifest and its catalogue; return the number of patches of each role.

    An answer with the columns NEEDED is written as it is, with any other columns it has. An answer
    with `patch_id` alone selects whole rows of the manifest, each once, in the manifest's order.
    Raises UserError if the answer has neither, no rows, only one role, or a patch more than once,
    or if a file of the manifest is damaged. Call `check_save` first. stop: ends it with
    duckdb.InterruptException when set.
    """
    missing = [name for name in NEEDED if name not in answer.columns]
    if missing and "patch_id" not in answer.columns:
        raise UserError(
            f"--save: the answer is no manifest; it lacks patch_id, or {', '.join(missing)}",
            "SELECT patch_id FROM … selects whole rows",
        )
    metadata = manifest.metadata | {"query": sql}
    if missing:
        schema, batches = manifest.schema, _selected_rows(manifest, answer)
    else:
        _check_intact(manifest.files)  # DuckDB ignores the checksums of pages
        reader = answer.to_arrow_reader(ROW_GROUP)
        schema, batches = reader.schema, iter(reader)
        check_columns(schema, NEEDED, target)
    with own_path(target) as temporary:
        counts = _write(temporary, schema, metadata, _until(stop, batches))
        roles = Counter[str]()
        for (_, role), number in counts.items():
            roles[role] += number
        for role in PATCH_SIZE:
            if not roles[role]:
                raise UserError(
                    f"--save: the answer has no '{role}' patch", "training needs both roles"
                )
        _check_unique(temporary, schema.names)
        _check_going(stop)  # DuckDB's own interrupt ends a statement that runs, and none after it
    _write_catalogue(manifest, target, metadata, counts)
    return roles


def _until(stop: Event, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        _check_going(stop)
        yield batch


def _check_going(stop: Event) -> None:
    if stop.is_set():
        raise duckdb.InterruptException("the question was stopped")


def _selected_rows(manifest: Manifest, answer: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    """Whole rows of the manifest whose patch_id is in the answer."""
    wanted = (
        answer.project("patch_id::VARCHAR AS patch_id")
        .distinct()
        .to_arrow_table()["patch_id"]
        .combine_chunks()
    )
    written = set[str]()
    for file in manifest.files:
        part, digest = pq.ParquetFile(file), digest_of(file)
        for group in range(part.num_row_groups):
            ids = part.read_row_group(group, columns=["patch_id"])["patch_id"].cast(wanted.type)
            selected = pc.is_in(ids, wanted)
            if not pc.any(selected).as_py():  # the pixels of other row groups are not read
                continue
            if digest:
                with damage_named(file), open(file, "rb") as content:
                    digest.check_group(content, group)
            first = []
            for name in ids.to_pylist():
                first.append(name not in written)
                written.add(name)
            rows = part.read_row_group(group).filter(pc.and_(selected, pa.array(first)))
            yield from rows.to_batches()


def _check_intact(files: Iterable[Path]) -> None:
    """Read all bytes of files that have a digest. Raises DamagedError."""

    def check(file: Path) -> None:
        with damage_named(file):
            check_parquet(file)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(check, files))


def _check_unique(path: Path, names: Sequence[str]) -> None:
    """Raise UserError if a patch is in a file more than once, as a join makes it."""
    if "patch_id" not in names:
        return
    ids = pq.read_table(path, columns=["patch_id"])["patch_id"]
    if repeats := len(ids) - pc.count_distinct(ids, mode="all").as_py():
        raise UserError(
            f"--save: the answer repeats patches: {repeats} of its {len(ids)} rows have the"
            " patch_id of another row",
            "SELECT DISTINCT patch_id FROM … saves each patch once",
        )


def _write(
    path: Path, schema: pa.Schema, metadata: dict[str, Any], batches: Iterable[pa.RecordBatch]
) -> Counter[tuple[str, str]]:
    """Write the rows; return the number of rows by image_id and role."""
    counts = Counter[tuple[str, str]]()
    schema = schema.with_metadata(encoded_metadata(schema, metadata))
    with table_writer(path, schema) as write:
        for group in _row_groups(schema, batches):
            write(group)
            counts.update(
                zip(group["image_id"].to_pylist(), group["role"].to_pylist(), strict=True)
            )
    return counts


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of ROW_GROUP rows, the size that the trainer reads fastest."""
    pending = schema.empty_table()
    for batch in batches:
        more = pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
        pending = pa.concat_tables([pending, more])
        while len(pending) >= ROW_GROUP:
            yield pending.slice(0, ROW_GROUP)
            pending = pending.slice(ROW_GROUP)
    if len(pending):
        yield pending


def _write_catalogue(
    manifest: Manifest, target: Path, metadata: dict[str, Any], counts: Counter[tuple[str, str]]
) -> None:
    """Write the catalogue with every photograph and the patches that it has in the new manifest."""
    catalogue = companion(manifest, "images.parquet")
    if not catalogue.is_file():
        return
    rows = pq.read_table(catalogue).to_pylist()
    for row in rows:
        left = {role: counts[row["image_id"], role] for role in PATCH_SIZE}
        if row["status"] == "ok" and not any(left.values()):
            row |= {"status": "left_out", "error": "no patch of it is in the answer"}
        if row["status"] in ("ok", "left_out"):
            row |= {f"n_{role}": number for role, number in left.items()}
    with (
        own_path(images_path(target)) as temporary,
        rows_to(temporary, IMAGES, metadata) as write,
    ):
        write(rows)
    out = StoragePath(str(target))
    write_sidecars(out, metadata, work=out.parent)
