"""Rows with their pixels, for a few patches.

DuckDB reads the pixels of a whole manifest to return those of thirty patches: it filters rows after
it has read their columns. So it says in which row groups the patches are, and only these are read.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.manifest import Manifest
from schemas.parquet import ROW_GROUP

if TYPE_CHECKING:
    from pipeline.query.mirror import Mirror

_BUFFER = 1 << 20  # bytes read at once, where a row group is larger than a build makes it


def rows_of_patches(
    connection: duckdb.DuckDBPyConnection,
    manifest: Manifest,
    patch_ids: Sequence[str],
    columns: Sequence[str],
    mirror: "Mirror | None" = None,
) -> pa.Table:
    """The rows of these patches, in no order. Ids that are no patches are passed over.

    columns: `patch_id` among them; those that the manifest lacks are left out. Raises duckdb.Error,
    pa.ArrowException, OSError.
    """
    columns = [name for name in manifest.schema.names if name in columns]
    groups = _groups(connection, manifest, patch_ids)
    if mirror:
        mirror.fetch_row_groups({file.name: numbers for file, numbers in groups.items()})
    wanted = pa.array(patch_ids, pa.string())

    def batches() -> Iterator[pa.RecordBatch]:
        for file, numbers in groups.items():
            with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as part:
                for batch in part.iter_batches(ROW_GROUP, sorted(numbers), columns):
                    ids = batch["patch_id"].cast(pa.string())
                    yield batch.filter(pc.is_in(ids, wanted))

    schema = pa.schema([manifest.schema.field(name) for name in columns])
    return pa.Table.from_batches([batch.cast(schema) for batch in batches()], schema)


def _groups(
    connection: duckdb.DuckDBPyConnection, manifest: Manifest, patch_ids: Sequence[str]
) -> dict[Path, set[int]]:
    """The row groups that hold these patches, by file."""
    found = connection.execute(
        "SELECT la_sr_file, file_row_number FROM read_parquet($files, filename = 'la_sr_file',"
        " file_row_number = true, hive_partitioning = false)"
        " WHERE patch_id IN (SELECT unnest($ids::VARCHAR[]))",
        {"files": [str(file) for file in manifest.files], "ids": list(patch_ids)},
    ).fetchall()
    rows = defaultdict[Path, list[int]](list)
    for file, row in found:
        rows[Path(file)].append(row)
    groups = {}
    for file, numbers in sorted(rows.items()):
        metadata = pq.read_metadata(file)
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        groups[file] = set(np.searchsorted([*accumulate(sizes)], numbers, "right").tolist())
    return groups
