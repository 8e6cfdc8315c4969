"""Help pages: plain text of at most 100 columns, on a terminal and in a pipe."""

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from lasr.flags import COMMON, HELP, HELP_ALL, Flags, without_none
from lasr.weights.registry import UNLISTED

WIDTH = 100  # columns
COLUMN = 26  # where descriptions begin


def page(flags: Flags[Any], everything: bool = False) -> str:
    """Usage, the docstring as it is, and options by section.

    everything: also the sections that the model's SECTIONS names.
    """
    fields = flags.model.model_fields
    hidden = [name for names in flags.sections.values() for name in names]
    lines = [_usage(flags), "", flags.about.strip(), ""]
    lines += _section("Options", flags, [name for name in fields if name not in hidden])
    if everything:
        for title, names in flags.sections.items():
            lines += _section(title, flags, names)
    about = {flag: COMMON[flag] for flag in flags.common}
    if not hidden:
        del about[HELP_ALL]
        about[HELP] = ("", "show this page")
    elif not everything:
        about[HELP_ALL] = ("", f"show all {len(fields)} options")
    lines.append("Common:")
    for flag, (metavar, text) in about.items():
        lines += entry(f"{flag} {metavar}".strip(), text)
    return "\n".join(lines)


def _usage(flags: Flags[Any]) -> str:
    words, required = [flags.name], []
    for name in flags.names:
        field, metavar = flags.model.model_fields[name], _metavar(flags, name)
        if flags.is_positional(name):
            words.append(metavar if field.is_required() else f"[{metavar}]")
        elif field.is_required():
            required.append(f"{flags.label(name)} {metavar}")
    return f"Usage: {' '.join([*words, *required])} [options]"


def _section(title: str, flags: Flags[Any], names: Iterable[str]) -> list[str]:
    lines: list[str] = []
    for name in names:
        metavar = _metavar(flags, name)
        label = metavar if flags.is_positional(name) else f"{flags.label(name)} {metavar}".strip()
        if short := flags.aliases.get(name):
            label += f", {short}"
        lines += entry(label, _description(flags.model.model_fields[name]))
    return [f"{title}:", *lines, ""] if lines else []


def _metavar(flags: Flags[Any], name: str) -> str:
    """What stands for the value: PATH, N (an integer), X (a number), or the name in capitals."""
    kind = without_none(flags.model.model_fields[name].annotation)
    if kind is bool:
        return ""
    item = get_args(kind)[0] if get_origin(kind) is list else kind
    word = name.upper().replace("_", "-")
    if not flags.is_positional(name):
        word = {int: "N", float: "X", Path: "PATH"}.get(item, word)
    return word if item is kind else f"{word}..."


def _description(field: FieldInfo) -> str:
    parts = [field.description or ""]
    kind = without_none(field.annotation)
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind) if choice not in UNLISTED]
        parts.append(f"[{' | '.join(choices)}]")
    elif field.examples:
        parts.append(f"[{' | '.join(map(str, field.examples))}]")
    default = field.default
    if field.is_required():
        parts.append("(required)")
    elif default is not None and default is not False and default != []:
        text = " ".join(map(str, default)) if isinstance(default, list) else default
        parts.append(f"(default: {text})")
    return " ".join(parts)


def entry(label: str, text: str) -> Iterator[str]:
    """A label and its description in two columns."""
    lines = textwrap.wrap(text, WIDTH - COLUMN, break_long_words=False, break_on_hyphens=False)
    start = f"  {label}"
    if len(start) < COLUMN - 1 and lines:
        yield start.ljust(COLUMN) + lines.pop(0)
    else:
        yield start
    for line in lines:
        yield " " * COLUMN + line
