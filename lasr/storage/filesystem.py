"""The file system of an address.

`s3://bucket/name` and `gs://…` go through pyarrow, other schemes through fsspec and its packages;
credentials, region and endpoint come from the usual variables (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, …).
"""

import functools
import os
import re

import pyarrow as pa
import pyarrow.fs as pafs

from lasr.errors import UserError, one_line, printable

_HUB_KINDS = ("datasets", "spaces", "buckets")  # before the owner, in hf://
# Seconds. The library makes three attempts. A copy inside the storage sends nothing until it ends.
CONNECT_TIMEOUT, REQUEST_TIMEOUT = 5, 15


class StorageError(UserError):
    """A file or folder that cannot be read or written."""


@functools.lru_cache
def file_system(scheme: str, bucket: str) -> pafs.FileSystem:
    """The pyarrow file system of a bucket. Raises StorageError."""
    address = f"{scheme}://{bucket}"
    try:
        if scheme == "s3":
            return _s3(bucket)
        if scheme in ("gs", "gcs"):
            return pafs.FileSystem.from_uri(address)[0]
        import fsspec

        # huggingface_hub reads this variable only while it is imported.
        hub = os.environ.get("HF_ENDPOINT") if scheme == "hf" else None
        options = {"endpoint": hub.rstrip("/")} if hub else {}
        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme, **options)))
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        fix = "check the scheme, the credentials and the endpoint"
        if isinstance(error, ImportError):
            fix = "install the package that it names"
        elif isinstance(error, ValueError):
            fix = "use s3://, gs://, hf:// or another scheme that fsspec knows"
        raise StorageError(f"{address}: cannot be opened ({reason(error)})", fix) from error


def _s3(bucket: str) -> pafs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    scheme, _, host = (endpoint or "https://").rpartition("://")
    if not (endpoint or region):
        region = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        scheme=scheme or "http",
        endpoint_override=host.rstrip("/") or None,
        region=region,
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=REQUEST_TIMEOUT,
        allow_delayed_open=True,  # a small file is one request, not three
    )


def split(address: str) -> tuple[pafs.FileSystem, str]:
    """The file system of an address, and the path there. Raises StorageError."""
    scheme, _, key = address.partition("://")
    parts = key.split("/")
    if not key.strip("/") or (scheme in ("s3", "gs", "gcs") and not parts[0]):
        fix = "write one such as s3://bucket/name"
        raise StorageError(f"{address}: an address without a bucket", fix)
    if scheme == "hf" and len([part for part in parts if part not in (*_HUB_KINDS, "")]) < 2:
        fix = "write one such as hf://datasets/owner/name"
        raise StorageError(f"{address}: an address without a repository", fix)
    return file_system(scheme, parts[0]), key


def trimmed(address: str) -> str:
    """An address without slashes at its end; those behind the scheme stay."""
    scheme, colon, key = address.partition("://")
    return scheme + colon + key.rstrip("/")


def reason(error: Exception) -> str:
    """The message of an error without the library's preamble and request ids."""
    text = printable(getattr(error, "strerror", None) or one_line(error, 1000))
    return re.sub(r"^.*?AWS Error |\s*\(Request ID: .*\)", "", text)
