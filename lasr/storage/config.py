"""The flags of commands that read a manifest in storage."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from schemas.address import address_of

if TYPE_CHECKING:
    from lasr.storage.remote import Access


def address(where: str | os.PathLike[str]) -> Path | str:
    """A path of this machine as a Path, an address such as `s3://bucket/name` as text."""
    return address_of(where) or Path(where)


def _address(value: Any) -> Any:
    return address(value) if isinstance(value, str | os.PathLike) else value


# A path, or an address such as s3://bucket/patches.parquet.
ManifestAddress = Annotated[Path | str, BeforeValidator(_address)]


def base_name(where: Path | str) -> str:
    """The last component of a path or address."""
    return where.name if isinstance(where, Path) else where.rstrip("/").rsplit("/", 1)[-1]


class StorageConfig(BaseModel):
    """How a manifest in storage is read. None of it changes a result."""

    model_config = ConfigDict(frozen=True)

    cache: Path | None = Field(
        None,
        description="folder for row groups of a manifest in object storage, which processes may"
        " share and you may delete (default: la-sr/ranges in ~/.cache or $XDG_CACHE_HOME)",
    )
    cache_size: float = Field(10, gt=0, description="GB that this folder may take")
    storage_timeout: float = Field(
        300, gt=0, description="seconds to try again while object storage does not answer"
    )

    @property
    def access(self) -> "Access":
        """The cache and the counters that all manifests of this process share."""
        return _access(self.cache, self.cache_size, self.storage_timeout)


@functools.lru_cache
def _access(folder: Path | None, gigabytes: float, seconds: float) -> "Access":
    from lasr.storage.cache import RangeCache, default_folder
    from lasr.storage.remote import Access
    from lasr.storage.retry import Patience

    cache = RangeCache(folder or default_folder(), round(gigabytes * 1e9))
    return Access(cache, Patience(seconds))
