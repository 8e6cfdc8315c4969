"""Tell an address in storage from a path. It imports little, so that every command can use it."""

import os
import re


def address_of(where: str | os.PathLike[str]) -> str | None:
    """The address in storage, such as `s3://bucket/name`; None: this is a path of this machine.

    A Path that was made of an address counts as well: pathlib leaves one slash of two.
    """
    text = os.fspath(where)
    if "://" in text:
        return text
    found = re.fullmatch(r"([a-z0-9+]+):/(.*)", text)
    return f"{found[1]}://{found[2]}" if found else None
