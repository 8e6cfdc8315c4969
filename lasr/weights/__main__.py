"""The command `lasr weights`: list, fetch, verify, export."""

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from lasr.cli import Command, Group
from lasr.weights.listing import markdown, show_list
from lasr.weights.locate import WeightsError, with_needs
from lasr.weights.registry import PROFILES, TABLE, Weights

ABOUT = """\
Model weights: list them, download them, verify them, and copy them to another machine.

    lasr weights list
    lasr weights fetch default
    lasr weights verify
    lasr weights export /media/stick/weights default

A run reads weights from a folder on this machine and never uses the network; only `fetch` does.
NAME is a name of `list`, or a profile: default, paper. Mirrors and proxies: docs/weights.md.
"""


def chosen(names: list[str]) -> list[Weights] | None:
    """The table's entries with files for names and profiles, and what they need; None for none.

    Raises WeightsError: an unknown name.
    """
    entries = []
    for name in names:
        for each in PROFILES[name].values() if name in PROFILES else [name]:
            if each not in TABLE:
                known = ", ".join([*PROFILES, *TABLE])
                raise WeightsError(f"{each}: no such weights or profile", f"take one of {known}")
            entries.append(TABLE[each])
    return with_needs(entries) if names else None


class ListConfig(BaseModel):
    """The flags of `lasr weights list`."""

    markdown: bool = Field(False, description="print the tables of docs/weights.md")


class FetchConfig(BaseModel):
    """The flags of `lasr weights fetch`."""

    names: list[str] = Field(min_length=1, description="weights or profiles")


class VerifyConfig(BaseModel):
    """The flags of `lasr weights verify`."""

    names: list[str] = Field([], description="weights or profiles (default: all on this machine)")


class ExportConfig(BaseModel):
    """The flags of `lasr weights export`."""

    folder: Path = Field(description="a new folder, or an earlier export")
    names: list[str] = Field([], description="weights or profiles (default: all on this machine)")


def _list(config: ListConfig) -> None:
    if config.markdown:
        print(markdown())
    else:
        show_list()


def _fetch(config: FetchConfig) -> None:
    from lasr.weights.fetch import fetch  # imports huggingface_hub

    fetch(chosen(config.names) or [])


def _verify(config: VerifyConfig) -> None:
    from lasr.weights.bundle import verify

    verify(chosen(config.names))


def _export(config: ExportConfig) -> None:
    from lasr.weights.bundle import export

    export(config.folder, chosen(config.names))


_COMMANDS: list[Command[Any]] = [
    Command(
        ListConfig,
        _list,
        name="lasr weights list",
        about="List all weights with their licence and size, and which are on this machine.",
        weights=True,
    ),
    Command(
        FetchConfig,
        _fetch,
        name="lasr weights fetch",
        about="Download weights by name or profile; resumes an interrupted download.",
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
