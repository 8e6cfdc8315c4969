"""The files beside a manifest: their names, and the columns of those that are tables.

`images.parquet` is the catalogue, with one row per photograph found, whether it was used or not;
`duplicates.parquet` lists near-duplicates; `card.md` is the data card.
"""

from pathlib import Path

import pyarrow as pa

from schemas.manifest import Manifest, ManifestError, column, find_files

BESIDE = ("images.parquet", "duplicates.parquet", "card.md")

IMAGES = pa.schema(
    [
        column("image_id", pa.string(), "sha256 of the photograph's bytes, hex; null if unread"),
        column("path", pa.string(), "POSIX path relative to the images root"),
        column("width", pa.int32(), "pixels, after EXIF rotation; null if undecoded"),
        column("height", pa.int32(), "pixels, after EXIF rotation; null if undecoded"),
        column(
            "status",
            pa.string(),
            "ok, no_patches, too_small, too_large, unsupported, unreadable, …",
        ),
        column("error", pa.string(), "why it was not used; null for ok"),
        column("n_lr", pa.int32(), "lr patches in the manifest"),
        column("n_hr", pa.int32(), "hr patches in the manifest"),
        column("phash", pa.string(), "perceptual hash, 16 hex digits; null: nothing to compare"),
        column("split", pa.string(), "train or val: see split_of; null if unread"),
        # Added later to version 1; files written before lack it.
        column("note", pa.string(), "what was used of it, such as the first of 12 frames"),
    ]
)

DUPLICATES = pa.schema(
    [
        column("kind", pa.string(), "photograph, lr or hr: what was compared with its like"),
        column("id", pa.string(), "image_id or patch_id of the one that may be left out"),
        column("kept", pa.string(), "image_id or patch_id of the one it looks like"),
        column("distance", pa.int32(), "bits in which their perceptual hashes differ"),
    ]
)


def beside(manifest: str, name: str) -> str:
    """Return the name of a file beside a manifest.

    manifest: the manifest's name. name: one of BESIDE. Beside `patches.parquet` it is the name
    itself; beside any other manifest it begins with that manifest's name, so that several manifests
    can share a folder: `mine.parquet` has `mine.images.parquet`.
    """
    stem = manifest.removesuffix(".parquet")
    return name if stem == "patches" else f"{stem}.{name}"


def work_name(manifest: str) -> str:
    """Return the name of the folder beside a manifest in which builds of it work."""
    return f"{manifest.removesuffix('.parquet')}.work"


def companion(manifest: Manifest, name: str) -> Path:
    """Return the path of a file beside a manifest as it was published with the rows.

    name: one of BESIDE. Where the manifest names its companions, that is a file in the work folder
    that never changes: the file beside the manifest is for other readers, and follows a moment
    later. Without a work folder it is the file beside it. Raises ManifestError: the manifest was
    published again since it was opened, and what was published with these rows is gone.
    """
    path = manifest.path.with_name(beside(manifest.path.name, name))
    if manifest.current is None:
        return path
    kept = path.with_name(work_name(manifest.path.name)) / manifest.current.beside.get(name, name)
    if kept.is_file():
        return kept
    if find_files(manifest.path)[1] != manifest.current:
        raise ManifestError(
            f"{manifest.path}: was published again while it was read", "run the same command again"
        )
    return path


def images_path(manifest: Path) -> Path:
    """Return the path of a manifest's image catalogue."""
    return manifest.with_name(beside(manifest.name, "images.parquet"))
