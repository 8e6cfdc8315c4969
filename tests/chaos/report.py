"""What a run of the harness counts, as a table to quote, and how it says what is wrong."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.chaos.disturbances import CHANGES, DAMAGES, OBSTACLES


class Violation(AssertionError):
    """Something that must hold does not."""


def require(holds: object, what: str) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(what)


@dataclass
class Report:
    """What happened so far."""

    episodes: Counter[str] = field(default_factory=Counter)  # by kind; one may be of several
    disturbances: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)  # "build done", "train refused", …
    asked: Counter[str] = field(default_factory=Counter)  # what a user did because of a refusal
    checks: Counter[str] = field(default_factory=Counter)  # what was found to hold, how often
    seconds: dict[str, float] = field(default_factory=dict)  # of an undisturbed command
    violations: int = 0

    def table(self) -> str:
        """All counts as a table in Markdown, with a sum for each kind."""
        ends: dict[str, Counter[str]] = {}
        for outcome, count in self.outcomes.items():
            name, _, end = outcome.rpartition(" ")
            ends.setdefault(end, Counter())[name] += count
        signals = [name for name in self.disturbances if name.startswith("SIG")]
        meanwhile = [name for name in self.disturbances if name.endswith(" meanwhile")]
        rows = [("episodes", self.episodes["all"], self.episodes - Counter(all=10**9))]
        rows += [
            (title, None, _only(self.disturbances, names))
            for title, names in (
                ("signals", signals), ("changes of photographs", CHANGES),
                ("damages", [*DAMAGES, *meanwhile]), ("obstacles", OBSTACLES),
            )
        ]  # fmt: skip
        rows += [(f"commands {end}", None, counts) for end, counts in sorted(ends.items())]
        rows += [("done because of a refusal", None, self.asked), ("checks", None, self.checks)]
        rows += [("violations", self.violations, Counter())]
        lines = ["| what | count | of which |", "|---|---:|---|"]
        for title, total, counts in rows:
            parts = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if n)
            lines.append(f"| {title} | {counts.total() if total is None else total} | {parts} |")
        return "\n".join(lines)


def _only(counts: Counter[str], names: Iterable[str]) -> Counter[str]:
    return Counter({name: counts[name] for name in names})
