"""Tell an address in storage from a path. It imports little, so that every command can use it."""

import os
import re


def address_of(where: str | os.PathLike[str]) -> str | None:
    """The address in storage, such as `s3://bucket/name`; None: this is a path of this machine.

    A Path that was made of an address counts as well: pathlib leaves one slash of two. A scheme has
    two letters or more (`c:/` is a disk of Windows), of either case.
    """
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/(.*)", os.fspath(where), re.DOTALL)
    return f"{found[1].lower()}://{found[2].removeprefix('/')}" if found else None
