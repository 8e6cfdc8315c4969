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


def anchors(page: Path) -> set[str]:
    """The fragments by which GitHub links to a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    plain = [re.sub(r"[^\w\- ]", "", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {title.strip().lower().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", NAMES)
def test_what_a_page_links_to_has_that_heading(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!http)([^)#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8"))
    targets = [(path.parent / name if name else path, anchor) for name, anchor in links]
    pages = [(target, anchor) for target, anchor in targets if target.suffix == ".md"]
    assert [anchor for target, anchor in pages if anchor not in anchors(target)] == []


SOURCE = (
    r"https://github\.com/[\w.-]+/[\w.-]+/(?:tree/[0-9a-f]{40}|blob/[0-9a-f]{40}/\S+#L\d+(-L\d+)?)"
)


def unsourced(text: str) -> list[str]:
    """What lacks a source in docs/compare.md: cells, and marks that lead nowhere."""
    tables, searches = text.split("\n## Searches that found nothing\n")
    lines = [line for line in tables.splitlines() if line.startswith("|") and "---" not in line]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    named = [row for row in rows if row[0].strip() not in ("", "tool")]
    cells = [f"{row[0].strip()}: {cell.strip()}" for row in named for cell in row[1:]]
    marks = set(re.findall(r"\[([A-Z]\d+)\]", tables))
    defined = dict(re.findall(r"^\[([A-Z]\d+)\]: (\S+)$", searches, re.M))
    listed = set(re.findall(r"^\| (N\d+) \|.*\| none \|$", searches, re.M))
    wrong = [cell for cell in cells if not re.search(r"\[[A-Z]\d+\]|\]\([^)h]", cell)]
    wrong += sorted(marks - set(defined)) + sorted(set(defined) - marks)
    wrong += sorted(listed ^ {mark for mark in defined if mark[0] == "N"})
    outside = [(mark, link) for mark, link in defined.items() if mark[0] != "N"]
    return wrong + [mark for mark, link in outside if not re.fullmatch(SOURCE, link)]


def test_each_cell_of_the_comparison_has_its_source() -> None:
    assert unsourced((ROOT / "docs/compare.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("seven [U1]", "seven", "trained network included: **seven**"),
        ("[torchrun](training.md#several-gpus)", "torchrun", "several GPUs: torchrun"),
        ("faces [C12]", "faces [C99]", "C99"),
        ("a4abfb2979a7bbff3f69f58f58ae324608821e27/README.md#L133", "master/README.md#L133", "R1"),
        ("README.md#L133-L148", "README.md", "R1"),
        ("| N7 | Real-ESRGAN", "| N77 | Real-ESRGAN", "N7"),
    ],
)
def test_a_missing_source_would_be_found(right: str, wrong: str, named: str) -> None:
    text = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    assert right in text
    assert named in unsourced(text.replace(right, wrong))
