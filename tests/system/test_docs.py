"""Pages of the documentation: every command parses, and links and files exist."""

import re
import shlex
from pathlib import Path

import pytest

from lasr.__main__ import main
from lasr.cli import Command, Group, Lazy
from lasr.flags import UsageError

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "data/README.md"]
NAMES = sorted(str(page.relative_to(ROOT)) for page in PAGES)
CODE = r"`(?!docker/\.env)((?:lasr|schemas|pipeline|trainer|tests|docs|docker|benchmarks)/[\w./]*)`"


def commands(page: str) -> list[str]:
    """The arguments of `lasr` in a page's fenced blocks."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = "".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.S | re.M)).splitlines()
    by_name = [re.sub(r"^torchrun .*-m trainer\.run ", "lasr train ", line) for line in lines]
    matches = [re.search(r"(?:^|trainer |worker )lasr ([a-z].*)", line) for line in by_name]
    return [match[1] for match in matches if match]


def parse(command: str) -> None:
    """Parse a command line without running it. Raises UsageError."""
    program: Command | Group | Lazy = main
    name, *argv = ["lasr", *shlex.split(command, comments=True)]
    while isinstance(program, Group):
        name, *argv = argv
        if name.startswith("--"):
            return
        if name not in program.commands:
            raise UsageError(f"unknown command {name}", "")
        program = program.commands[name]
        program = program.load() if isinstance(program, Lazy) else program
    program.flags.parse(argv)


@pytest.mark.parametrize(
    ("page", "command"), [(page, command) for page in NAMES for command in commands(page)], ids=str
)
def test_a_command_parses(page: str, command: str) -> None:
    parse(command)


@pytest.mark.parametrize("wrong", ["bild --images a", "build --imges a", "train --steps many"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(UsageError):
        parse(wrong)


@pytest.mark.parametrize("page", NAMES)
def test_what_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#\s]+)\)", text)
    paths = [(ROOT / page).parent / link for link in links]
    new = set(re.findall(r"^New file `([^`]+)`", text, re.M))  # of docs/extend.md
    paths += [ROOT / name for name in re.findall(CODE, text) if name not in new]
    assert [str(path) for path in paths if not path.exists()] == []
    assert set(re.findall(r"`lasr ([a-z][a-z-]*)", text)) <= set(main.commands)


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [page for page in pages if f"]({page})" not in index] == []
