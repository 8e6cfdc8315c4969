"""The files beside a manifest that are computed from its rows: near-duplicates and a data card."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lasr.marks import signed
from pipeline.outputs import is_marked, set_aside
from pipeline.sidecars.card import data_card
from pipeline.sidecars.duplicates import find_duplicates
from pipeline.storage import StoragePath, read_table, reported, scratch
from schemas.catalogue import BESIDE, beside
from schemas.parquet import write_table

_COLUMNS = ("patch_id", "role", "rank", "phash", "split")  # no pixels


def write_sidecars(manifest: StoragePath, metadata: dict[str, Any], work: StoragePath) -> None:
    """Write `duplicates.parquet` and `card.md` beside a manifest and its catalogue.

    Both replace older ones. work: a folder on the same disk, for temporary files. Raises
    StorageError.
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
    card = signed(data_card(manifest, metadata, catalogue, patches, duplicates))
    with scratch(work, card_path.name) as temporary:
        temporary.write_bytes(card.encode())
        card_path.take(temporary, is_marked)


def _read_patches(manifest: StoragePath) -> pa.Table:
    names = [name for name in manifest.names() if name.endswith(".parquet")]
    files = [manifest / name for name in names] or [manifest]
    schema = pq.read_schema(files[0].key, filesystem=files[0].fs)
    columns = [name for name in _COLUMNS if name in schema.names]
    return pa.concat_tables([read_table(file, columns) for file in files])
