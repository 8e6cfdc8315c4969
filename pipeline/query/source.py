"""Open the manifest of a question: on a local disk, or in object storage by way of a mirror."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from schemas.address import address_of
from schemas.manifest import Manifest, ManifestError, open_manifest

if TYPE_CHECKING:
    from pipeline.query.mirror import Mirror


@contextlib.contextmanager
def opened(manifest: Path) -> Iterator[tuple[Manifest, "Mirror | None"]]:
    """Open a manifest on a local disk or in storage, for its rows. Raises UserError."""
    address = address_of(manifest)
    if address is None:
        yield open_manifest(manifest, columns=()), None
        return
    from pipeline.query.mirror import Mirror  # imports DuckDB

    with TemporaryDirectory(prefix="lasr-mirror-", ignore_cleanup_errors=True) as folder:
        mirror = Mirror(address, Path(folder))
        try:
            found = open_manifest(mirror.manifest, columns=())
        except ManifestError as error:
            where = address.rpartition("/")[0]
            raise ManifestError(error.problem.replace(folder, where), error.fix) from error
        yield found, mirror
