"""The SR network a run or a command asks for, by name or file."""

from schemas.weights import locate
from trainer.interpolation import interpolation_start
from trainer.rrdb import RRDB, load_rrdb

TINY = {"features": 32, "blocks": 3, "growth": 32}  # the offline profile's


def load_sr(name_or_path: str) -> RRDB:
    """The SR network by name (see schemas.weights) or from a file. Raises WeightsError."""
    located = locate(name_or_path, "sr")
    return interpolation_start(**TINY) if located.path is None else load_rrdb(located.path)
