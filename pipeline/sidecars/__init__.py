"""The files that are computed from a manifest's rows: near-duplicates and a data card."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.marks import signed
from pipeline.outputs import is_marked, set_aside
from pipeline.sidecars.card import Contents, data_card
from pipeline.sidecars.duplicates import find_duplicates
from pipeline.storage import StoragePath, read_table, reported, scratch
from schemas.catalogue import BESIDE, beside
from schemas.parquet import write_table

_COLUMNS = ("patch_id", "role", "rank", "phash", "split")  # no pixels


def write_sidecars(manifest: StoragePath, metadata: dict[str, Any], work: StoragePath) -> None:
    """Write `duplicates.parquet` and `card.md` beside a manifest and its catalogue.

    Of a manifest that no build wrote; builds publish them with the rows. Both replace older ones.
    work: a folder on the same disk, for temporary files. Raises StorageError.
    """
    catalogue_path, duplicates_path, card_path = (
        manifest.parent / beside(manifest.name, name) for name in BESIDE
    )
    with reported(manifest, "read"):
        catalogue, patches = read_table(catalogue_path), _read_patches(manifest)
    duplicates = find_duplicates(catalogue, patches)
    with scratch(work, duplicates_path.name) as temporary:
        write_table(temporary, duplicates, metadata)
        set_aside(duplicates_path)
        duplicates_path.take(temporary, is_marked)
    contents = _count(patches)
    text = data_card(manifest, bool(manifest.names()), metadata, catalogue, contents, duplicates)
    card = signed(text)
    with scratch(work, card_path.name) as temporary:
        temporary.write_bytes(card.encode())
        card_path.take(temporary, is_marked)


def _read_patches(manifest: StoragePath) -> pa.Table:
    names = [name for name in manifest.names() if name.endswith(".parquet")]
    files = [manifest / name for name in names] or [manifest]
    schema = pq.read_schema(files[0].key, filesystem=files[0].fs)
    columns = [name for name in _COLUMNS if name in schema.names]
    return pa.concat_tables([read_table(file, columns) for file in files])


def _count(patches: pa.Table) -> Contents:
    """How many patches of each role and split; split is None where there is no such column."""
    keys = [name for name in ("role", "split") if name in patches.schema.names]
    counts = Counter[tuple[str, str | None]]()
    for row in patches.group_by(keys).aggregate([([], "count_all")]).to_pylist():
        counts[row["role"], row.get("split")] += row["count_all"]
    return counts, "split" in keys
