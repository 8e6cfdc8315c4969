"""The command `lasr weights`: list, fetch, verify, export."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from lasr.cli import add_weights_dir, run_command
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


def _fetch(names: list[str]) -> None:
    from lasr.weights.fetch import fetch  # imports huggingface_hub

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
        "list": "list all weights with their licence and size, and which are on this machine",
        "fetch": "download weights by name or profile; resumes an interrupted download",
        "verify": "compare files with published and recorded digests",
        "export": "copy weights into one folder, for a machine without a network",
    }
    parsers = {name: named(name, help=text, description=text) for name, text in adders.items()}
    parsers["list"].add_argument(
        "--markdown", action="store_true", help="print the tables of docs/weights.md"
    )
    parsers["export"].add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    parsers["fetch"].add_argument("names", nargs="+", metavar="NAME", help="weights or profiles")
    for name in ("verify", "export"):
        about = "weights or profiles (default: all on this machine)"
        parsers[name].add_argument("names", nargs="*", metavar="NAME", help=about)
    for each in parsers.values():
        add_weights_dir(each)
    given = parser.parse_args(argv)
    commands_of: dict[str, Callable[[], None]] = {
        "list": lambda: print(markdown()) if given.markdown else show_list(),
        "fetch": lambda: _fetch(given.names),
        "verify": lambda: _verify(given.names),
        "export": lambda: _export(given.folder, given.names),
    }
    return run_command(commands_of[given.command])


if __name__ == "__main__":
    sys.exit(main())
