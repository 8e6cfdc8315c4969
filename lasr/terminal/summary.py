"""What a command says at its end: numbers with their nouns, and the next command to type."""

import os
import shlex
import subprocess
from collections.abc import Sequence

from lasr.terminal.output import is_quiet, say

NEXT = "next: "
_ENDINGS = ("s", "x", "z", "ch", "sh")  # of nouns whose plural has a syllable more


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 photograph, 2 photographs, 2 patches, 0 entries.

    noun: its last word is the one that changes. plural: where the rules of spelling do not give it.
    """
    if number == 1:
        return f"1 {noun}"
    if not plural:
        if noun.endswith("y") and noun[-2:-1] not in "aeiou":
            plural = f"{noun[:-1]}ies"
        else:
            plural = noun + ("es" if noun.endswith(_ENDINGS) else "s")
    return f"{number} {plural}"


def duration(seconds: float) -> str:
    """A length of time in words: 90 s, 12 minutes, 3.5 hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{seconds / 60:.0f} minutes"


def typed(words: Sequence[object]) -> str:
    """A command as it is typed in a shell of this system: words with spaces are quoted."""
    texts = [str(word) for word in words]
    if os.name == "nt":
        return subprocess.list2cmdline(texts)
    return " ".join(shlex.quote(text) if text.isprintable() else _in_c(text) for text in texts)


def _in_c(text: str) -> str:
    """A word with newlines or other control characters, on one line, as $'...' of bash and zsh."""
    special = {"\\": "\\\\", "'": "\\'"}
    shown = (special.get(c, c) if c.isprintable() else _in_octal(c) for c in text)
    return f"$'{''.join(shown)}'"


def _in_octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def say_next(words: Sequence[object]) -> None:
    """Name the next command, as the last line of a summary; nothing with --quiet."""
    if words and not is_quiet():
        say(NEXT + typed(words))
