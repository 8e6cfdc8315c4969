"""The folders that a served deployment may read and write.

Whoever reaches the server can start runs with any parameters. LASR_ROOTS names the folders that
these may use, `:` between them: local ones, or addresses such as `s3://bucket/photos`. Without it,
that is the folder in which the deployment is served. `lasr build` itself has no such limits.
"""

import os
import posixpath
import re
from collections.abc import Iterable

from lasr.errors import UserError
from lasr.weights.registry import TABLE
from pipeline.config import BuildConfig
from pipeline.storage import StoragePath

VARIABLE = "LASR_ROOTS"


def roots() -> list[str]:
    """The folders and addresses, resolved. Raises UserError: one that does not exist."""
    named = [each for each in re.split(f"{os.pathsep}(?!//)", os.environ.get(VARIABLE, "")) if each]
    for each in named:
        if "://" not in each and not os.path.isdir(each):  # noqa: PTH112
            raise UserError(
                f"{VARIABLE}: {each} is not a folder", "name folders, with : between them"
            )
    return [_resolved(each) for each in named or [os.getcwd()]]  # noqa: PTH109


def check_parameters(config: BuildConfig) -> None:
    """Refuse a run that would read or write outside the roots. Reads no file. Raises UserError."""
    allowed = roots()
    models = {"--depth": config.depth, "--clip": config.clip}
    paths = [("--images", given) for given in config.images]
    paths += [(flag, name) for flag, name in models.items() if name and name not in TABLE]
    paths += [("--dictionary", str(config.dictionary))] if config.dictionary else []
    paths += [("--cache", config.cache)] if config.cache is not None else []
    # Its work folder and the files beside it are in the folder around a manifest.
    paths += [("--out", config.out), ("--out", posixpath.dirname(_resolved(config.out)))]
    for flag, path in paths:
        _check(path, allowed, flag)
    if config.ray_address not in (None, "auto", os.environ.get("RAY_ADDRESS")):
        raise UserError(
            f"--ray-address {config.ray_address}: not the cluster of this deployment",
            "set RAY_ADDRESS where it is served",
        )


def check_paths(paths: Iterable[tuple[str, str]]) -> None:
    """Refuse paths outside the roots, each with the flag that names it. Raises UserError."""
    allowed = roots()
    for flag, path in paths:
        _check(path, allowed, flag)


def check_photographs(paths: Iterable[StoragePath]) -> None:
    """Refuse photographs that a list, glob or link finds outside the roots. Raises UserError."""
    allowed = roots()
    places = set[str]()
    for path in paths:
        is_link = path.is_local and os.path.islink(path.uri)  # noqa: PTH114
        places.add(path.uri if is_link else posixpath.dirname(path.uri))
    for place in sorted(places):
        _check(place, allowed, "--images")


def _check(path: str, allowed: list[str], flag: str) -> None:
    place = _resolved(path)
    if not any(place == root or place.startswith(f"{root.rstrip('/')}/") for root in allowed):
        raise UserError(
            f"{flag} {path}: outside of what this deployment may use, {', '.join(allowed)}",
            f"use one of these, or set {VARIABLE} where the deployment is served",
        )


def _resolved(path: str) -> str:
    if "://" in path:
        scheme, _, rest = path.partition("://")
        return f"{scheme.lower()}://{posixpath.normpath(rest)}"
    return os.path.realpath(path)
