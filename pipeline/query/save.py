"""Write the answer of a query as a manifest that `trainer.run` takes."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lasr.errors import UserError
from lasr.files import atomic_path
from pipeline.ownership import check_file
from pipeline.sidecars.write import write_companions
from pipeline.storage import Place
from schemas.catalogue import IMAGES, images_path
from schemas.manifest import PATCH_SIZE, Manifest, check_columns
from schemas.parquet import ROW_GROUP, encoded_metadata, parquet_writer, rows_to

PATCH_ROWS = ("image_id", "role", "size", "caption", "image")  # what a row needs to be trained on


def save(
    answer: duckdb.DuckDBPyRelation, manifest: Manifest, sql: str, target: Path
) -> Counter[str]:
    """Write a curated manifest and its catalogue; returns the number of patches of each role.

    An answer that holds PATCH_ROWS is written as it is, whatever other columns it has; of one with
    patch ids, the manifest's rows of these patches, in the manifest's order. Raises UserError: the
    answer has neither, no rows, or one role alone; the target is no name for a manifest in a file.
    """
    if target.suffix != ".parquet":
        raise UserError(f"--save {target}: give it a name that ends in .parquet")
    if target.is_dir():
        raise UserError(f"--save {target}: a folder stands there; choose another name")
    check_file(target)
    missing = [name for name in PATCH_ROWS if name not in answer.columns]
    if missing and "patch_id" not in answer.columns:
        raise UserError(
            f"--save: the answer is no manifest; it lacks patch_id, or {', '.join(missing)}:"
            " SELECT patch_id FROM … keeps whole rows"
        )
    metadata = manifest.metadata | {"query": sql}
    if missing:
        schema, batches = manifest.schema, _rows_of(manifest, answer)
    else:
        reader = answer.to_arrow_reader(ROW_GROUP)
        schema, batches = reader.schema, iter(reader)
        check_columns(schema, PATCH_ROWS, target)
    with atomic_path(target) as temporary:
        counts = _write(temporary, schema, metadata, batches)
        roles = Counter[str]()
        for (_, role), number in counts.items():
            roles[role] += number
        for role in PATCH_SIZE:
            if not roles[role]:
                raise UserError(f"--save: the answer holds no '{role}' patch; training needs both")
    _write_catalogue(manifest, target, metadata, counts)
    return roles


def _rows_of(manifest: Manifest, answer: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    """Whole rows of the patches that the answer names."""
    wanted = (
        answer.project("patch_id::VARCHAR AS patch_id")
        .distinct()
        .to_arrow_table()["patch_id"]
        .combine_chunks()
    )
    for file in manifest.files:
        part = pq.ParquetFile(file)
        for group in range(part.num_row_groups):
            ids = part.read_row_group(group, columns=["patch_id"])["patch_id"]
            chosen = pc.is_in(ids.cast(wanted.type), wanted)
            if pc.any(chosen).as_py():  # pixels of other row groups are not read
                yield from part.read_row_group(group).filter(chosen).to_batches()


def _write(
    path: Path, schema: pa.Schema, metadata: dict[str, Any], batches: Iterable[pa.RecordBatch]
) -> Counter[tuple[str, str]]:
    """Write the rows; returns how many each photograph has of each role."""
    counts = Counter[tuple[str, str]]()
    schema = schema.with_metadata(encoded_metadata(schema, metadata))
    with parquet_writer(path, schema) as writer:
        for group in _in_row_groups(schema, batches):
            writer.write_table(group)
            counts.update(
                zip(group["image_id"].to_pylist(), group["role"].to_pylist(), strict=True)
            )
    return counts


def _in_row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows, ROW_GROUP at a time: what the trainer reads well."""
    waiting = schema.empty_table()
    for batch in batches:
        more = pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
        waiting = pa.concat_tables([waiting, more])
        while len(waiting) >= ROW_GROUP:
            yield waiting.slice(0, ROW_GROUP)
            waiting = waiting.slice(ROW_GROUP)
    if len(waiting):
        yield waiting


def _write_catalogue(
    manifest: Manifest, target: Path, metadata: dict[str, Any], counts: Counter[tuple[str, str]]
) -> None:
    """The catalogue carried along: every photograph, with the patches that it has left."""
    if not images_path(manifest.path).is_file():
        return
    rows = pq.read_table(images_path(manifest.path)).to_pylist()
    for row in rows:
        left = {role: counts[row["image_id"], role] for role in PATCH_SIZE}
        if row["status"] == "ok" and not any(left.values()):
            row |= {"status": "left_out", "error": "no patch of it is in the answer"}
        if row["status"] in ("ok", "left_out"):
            row |= {f"n_{role}": number for role, number in left.items()}
    with (
        atomic_path(images_path(target)) as temporary,
        rows_to(temporary, IMAGES, metadata) as write,
    ):
        write(rows)
    out = Place(str(target))
    write_companions(out, metadata, work=out.parent)
