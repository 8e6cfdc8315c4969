"""Publications of made-up parts: small, without photographs, networks or a plan."""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build.parts import catalogue_identity, keep_part, read_part
from pipeline.build.publish import prune, publish
from pipeline.sidecars.kept import KEPT
from pipeline.storage import StoragePath, read_table, scratch
from schemas.catalogue import IMAGES, companion, work_name
from schemas.current import POINTER, read_current
from schemas.digest import Damaged
from schemas.manifest import PATCHES, ManifestError, file_metadata, open_manifest, split_of
from schemas.parquet import rows_to

METADATA = file_metadata({"k": 1, "images": ["photos"]}, "0" * 64)
PNG = b"\x89PNG"  # nobody looks
K = 2


def image_id(content: int) -> str:
    """The id of a photograph, whose content a number stands for."""
    return f"{content * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4


def make_part(work: StoragePath, photographs: Mapping[str, int]) -> str:
    """Make a part of photographs, given by name and content; returns its name.

    Hashes are near those of other contents: there are near-duplicates.
    """
    entries = [_entry(name, content) for name, content in photographs.items()]
    rows = [row for name, content in photographs.items() for row in _rows(name, content)]
    with scratch(work, "made") as temporary:
        with rows_to(temporary, PATCHES, METADATA, lambda: catalogue_identity(entries)) as write:
            write(rows)
        states = {name: [content, 0, "", name] for name, content in photographs.items()}
        about = {"selection": "s", "rows": "r", "states": states, "extras": []}
        return keep_part(work, temporary, pa.Table.from_pylist(entries, schema=IMAGES), about)


def _hash(content: int, rank: int) -> str:
    rng = np.random.default_rng(content % 7 + 10 * rank)  # few families
    value = int(rng.integers(0, 2**63)) ^ (1 << content % 61)
    return f"{value:016x}"


def _entry(name: str, content: int) -> dict[str, Any]:
    own = image_id(content)
    return {
        "image_id": own, "path": name, "width": 300 + content, "height": 200, "status": "ok",
        "error": None, "n_lr": K, "n_hr": K, "phash": _hash(content, 0), "split": split_of(own),
        "note": None,
    }  # fmt: skip


def _rows(name: str, content: int) -> list[dict[str, Any]]:
    own = image_id(content)
    return [
        {
            "patch_id": f"{content:015x}{rank}{role}".ljust(32, "0"), "image_id": own,
            "image_path": name, "role": role, "size": 56 if role == "lr" else 224, "rank": rank,
            "image": {"bytes": PNG, "path": None}, "phash": _hash(content, rank + 1),
            "split": split_of(own), "words": ["a"], "word_scores": [0.5], "caption": "a",
        }
        for role in ("lr", "hr")
        for rank in range(K)
    ]  # fmt: skip


def publish_parts(out: StoragePath, work: StoragePath, names: Sequence[str]) -> bool:
    """Publish parts as the end of a build does; whether anything changed."""
    parts = {name: read_part(work, name, in_full=False)[0] for name in names}
    _, published = publish(out, work, parts, list(names), METADATA)
    current = published.current
    prune(work, names, {*current.beside.values(), *current.former, *KEPT})
    return published.is_new


def look(out: Path) -> tuple[frozenset[str], frozenset[str]] | None:
    """Photographs in the rows and in the catalogue, by a reader of ours; None: it must look again.

    Raises AssertionError: rows, catalogue and near-duplicates do not belong together.
    """
    try:
        manifest = open_manifest(out, ["image_path"])
        if manifest.current is None or len(manifest.files) < len(manifest.current.files):
            return None
        paths = [
            path
            for file in manifest.files
            for path in pq.read_table(file, columns=["image_path"])["image_path"].to_pylist()
        ]
        entries = pq.read_table(companion(manifest, "images.parquet")).to_pylist()
        alike = pq.read_table(companion(manifest, "duplicates.parquet")).to_pylist()
    except (OSError, ManifestError) as error:
        gone = re.search("again while|No such file|holds no", str(error))
        if isinstance(error, ManifestError) and not gone:
            raise
        return None
    return _checked(paths, entries, alike)


def look_in_storage(out: StoragePath) -> tuple[frozenset[str], frozenset[str]] | None:
    """The same of a manifest anywhere, by a reader that follows `version.parquet`."""
    work = out.parent / work_name(out.name)
    try:
        current = read_current(io.BytesIO((out / POINTER).read_bytes()))
        paths = [
            path
            for name in current.files
            for path in read_table(out / name, ["image_path"])["image_path"].to_pylist()
        ]
        tables = [
            read_table(work / current.beside[name]).to_pylist()
            for name in ("images.parquet", "duplicates.parquet")
        ]
    except (OSError, Damaged):  # the pointer was replaced between asking its size and its bytes
        return None
    return _checked(paths, *tables)


def _checked(
    paths: list[str], entries: list[dict[str, Any]], alike: list[dict[str, Any]]
) -> tuple[frozenset[str], frozenset[str]]:
    used = {entry["path"]: entry["n_lr"] + entry["n_hr"] for entry in entries}
    assert Counter(paths) == Counter({path: n for path, n in used.items() if n})
    known = {entry["image_id"] for entry in entries}
    assert {row["id"] for row in alike if row["kind"] == "photograph"} <= known
    return frozenset(paths), frozenset(used)
