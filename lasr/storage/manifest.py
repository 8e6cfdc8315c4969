"""Find and open a manifest, on a local disk or in storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from lasr.storage.config import StorageConfig, address
from schemas import manifest
from schemas.current import POINTER, Current, is_part, read_current
from schemas.digest import Damaged
from schemas.manifest import PATCHES, Manifest, ManifestError

if TYPE_CHECKING:
    from lasr.storage.remote import StoredFile

THREADS = 16  # requests at once, of footers and small columns
PUBLICATIONS = 5  # that may happen while the files are listed


def open_manifest(
    where: Path | str, columns: Iterable[str] = PATCHES.names, config: StorageConfig | None = None
) -> Manifest:
    """`schemas.manifest.open_manifest`, also of an address such as `s3://bucket/patches.parquet`.

    Of files in storage the footers are read. Raises UserError, StorageError among them.
    """
    where = address(where)
    if isinstance(where, Path):
        return manifest.open_manifest(where, columns)
    files, current = find_files(where, config or StorageConfig())

    def fetch_footer(file: StoredFile) -> None:
        _ = file.tail

    with ThreadPoolExecutor(THREADS) as executor:
        list(executor.map(fetch_footer, files))
    return manifest.checked(where, files, columns, current)


def find_files(where: str, config: StorageConfig) -> tuple[tuple[StoredFile, ...], Current | None]:
    """The files of a manifest in storage, sorted by name, and what says that they are current.

    Raises ManifestError, StorageError.
    """
    import pyarrow.fs as pafs

    from lasr.storage.filesystem import split, trimmed
    from lasr.storage.remote import StoredFile
    from lasr.storage.retry import may_wait

    may_wait()
    where = trimmed(where)
    scheme, access = where.partition("://")[0], config.access

    def stored(info: pafs.FileInfo) -> StoredFile:
        # Some of fsspec's file systems put a slash before the bucket.
        path = info.path if key.startswith("/") else info.path.lstrip("/")
        return StoredFile(
            f"{scheme}://{path}", fs, info.path, info.size, info.mtime_ns or 0, access
        )

    def listed(key: str) -> list[pafs.FileInfo]:
        found: list[pafs.FileInfo] = fs.get_file_info(pafs.FileSelector(key))
        return found

    keep_trying = access.patience.keep_trying
    fs, key = keep_trying(where, lambda: split(where))
    info = keep_trying(where, lambda: fs.get_file_info(key))
    if info.type == pafs.FileType.File:
        return (stored(info),), None
    if info.type == pafs.FileType.NotFound:
        bucket = key.partition("/")[0]
        raise _nothing(
            where,
            lambda: (
                keep_trying(where, lambda: fs.get_file_info(bucket)).type != pafs.FileType.NotFound
            ),
        )
    inside = keep_trying(where, lambda: listed(key))
    for folder in sorted(each.base_name for each in inside if not each.is_file):
        if "=" in folder and any(
            each.base_name.endswith(".parquet")
            for each in keep_trying(where, lambda: listed(f"{key}/{folder}"))  # noqa: B023
        ):
            raise manifest.partitioned(where, folder)
    for left in reversed(range(PUBLICATIONS)):
        files = {each.base_name: each for each in inside if each.is_file}
        try:
            current = _current(stored(files[POINTER])) if POINTER in files else None
        except manifest.DamagedError:  # or replaced since it was listed
            if not left:
                raise
            inside = keep_trying(where, lambda: listed(key))
            continue
        names = sorted(current.files if current else filter(is_part, files))
        if not names:
            raise manifest.no_parts(where)
        if files.keys() >= set(names):
            return tuple(stored(files[name]) for name in names), current
        inside = keep_trying(where, lambda: listed(key))  # it was published meanwhile
    raise ManifestError(
        f"{where}: it lacks {next(name for name in names if name not in files)}, which its"
        f" {POINTER} names",
        "repeat its `lasr build`",
    )


def _current(file: StoredFile) -> Current:
    try:
        with file.open() as content:
            return read_current(content)
    except Damaged as error:
        raise manifest.DamagedError(file, error) from error


def _nothing(where: str, bucket_exists: Callable[[], bool]) -> ManifestError:
    """Why there is nothing at an address: the bucket, the repository or the key is missing."""
    scheme, _, key = where.partition("://")
    bucket = key.partition("/")[0]
    if scheme in ("s3", "gs", "gcs") and not bucket_exists():
        return ManifestError(
            f"{where}: there is no bucket '{bucket}'",
            "check its name and the endpoint (AWS_ENDPOINT_URL)",
        )
    if scheme == "hf":
        fix = "check the name; for a private or gated repository log in with `hf auth login`"
        return ManifestError(f"{where}: no manifest there that can be read", fix)
    build = f"build one with `lasr build --images FOLDER --out {where}`"
    return ManifestError(f"{where}: no manifest there", f"check the address, or {build}")
