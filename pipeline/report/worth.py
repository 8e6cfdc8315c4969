"""Whether a manifest is worth learning from: the answers of ready questions, held against limits.

The questions are in `pipeline/query/questions.sql`, so `lasr query --ask` gives the same figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pipeline.query.questions import QUESTIONS
from pipeline.report.comparison import interval_of, verdict_of
from pipeline.report.overview import Row

# The limits are a choice, not a measurement: from there on, the advice is worth a new build.
PLATEAU, BLANK, COPIES = 0.5, 0.1, 0.05
NEEDS = {  # columns of each question that earlier manifests lack
    "plateaus": set[str](),
    "no-content": {"contrast"},
    "near-copies": {"phash"},
    "equal-content": {"sharpness_56", "luma", "colour_a", "colour_b"},
}
ROLES = {"lr": "far", "hr": "near"}

State = Literal["good", "bad", "open", "not measured"]


@dataclass(frozen=True)
class Check:
    """One line of the answer."""

    question: str  # name of the ready question
    title: str
    found: str
    limit: str
    state: State
    advice: str = ""  # what to change, if the state is `bad`


@dataclass(frozen=True)
class Worth:
    """The answer: one sentence, and the checks behind it."""

    verdict: Literal["yes", "changes", "no", "open"]
    sentence: str
    checks: list[Check]

    @property
    def advice(self) -> list[str]:
        """What to change, each once."""
        return list(dict.fromkeys(c.advice for c in self.checks if c.advice))


def worth(ask: Callable[[str], list[Row]], columns: set[str], words_are_noise: bool) -> Worth:
    """Ask the four questions of a manifest and judge the answers.

    ask: answers a statement of SQL. columns: those of the manifest. words_are_noise: the captions
    come from an untrained CLIP, so that equal content is judged by colour alone.
    """
    judges: dict[str, Callable[[list[Row]], list[Check]]] = {
        "plateaus": _plateaus,
        "no-content": _blank,
        "near-copies": _copies,
        "equal-content": partial(_equal_content, words_are_noise=words_are_noise),
    }
    checks = []
    for name, judge in judges.items():
        if missing := sorted(NEEDS[name] - columns):
            why = f"the manifest has no column {', '.join(missing)}: build it again"
            checks.append(Check(name, QUESTIONS[name].title, why, "", "not measured"))
        else:
            checks += judge(ask(QUESTIONS[name].sql))
    return _judged(checks)


def _judged(checks: list[Check]) -> Worth:
    sharpness = [check for check in checks if check.question == "equal-content"]
    state, bad = sharpness[-1].state, [check for check in checks if check.state == "bad"]
    if state == "bad":
        return Worth(
            "no", "No: far patches do not look worse than near ones of the same content.", checks
        )
    if state == "not measured":
        return Worth(
            "open",
            "Not measured: the manifest lacks a measure of sharpness at equal size, or of colour."
            " The next build adds them.",
            checks,
        )
    if state == "open":
        return Worth(
            "open",
            "These photographs do not tell whether far patches look worse than near ones of the"
            " same content.",
            checks,
        )
    if bad:
        return Worth(
            "changes",
            "Yes, after a change: far patches look worse than near ones of the same content.",
            checks,
        )
    return Worth(
        "yes",
        "Yes: far patches look worse than near ones of the same content, and few are blank or"
        " copies.",
        checks,
    )


def _share(
    question: str, title: str, count: int, total: int, limit: float, advice: str
) -> list[Check]:
    """A check of a share of patches that should be small."""
    if not total:
        return []
    share = count / total
    bad = share > limit
    found = f"{share:.1%} ({count:,} of {total:,})"
    return [
        Check(question, title, found, f"at most {limit:.0%}", "bad" if bad else "good",
              advice if bad else "")
    ]  # fmt: skip


def _plateaus(rows: list[Row]) -> list[Check]:
    (row,) = rows
    advice = (
        "Most far patches are as far as others, so chance chooses among them: take photographs with"
        " less sky, or leave blank sky out with --far-texture 0.01."
    )
    return _share(
        "plateaus", "far patches in a plateau", row["plateau"], row["far"], PLATEAU, advice
    )


def _blank(rows: list[Row]) -> list[Check]:
    advice = {
        "lr": "Leave out blank far patches: --far-texture 0.01, or more.",
        "hr": "Leave out blank near patches: --min-texture 0.01, or more.",
    }
    return [
        check
        for row in _by_role(rows)
        for check in _share(
            "no-content", f"{ROLES[row['role']]} patches without content", row["blank"],
            row["total"], BLANK, advice[row["role"]],
        )
    ]  # fmt: skip


def _copies(rows: list[Row]) -> list[Check]:
    advice = {
        "lr": "Set far patches farther apart: --min-separation 56, or more.",
        "hr": "Set near patches farther apart: --min-separation 224.",
    }
    return [
        check
        for row in _by_role(rows)
        for check in _share(
            "near-copies", f"{ROLES[row['role']]} patches that copy one of their photograph",
            row["copies"], row["total"], COPIES, advice[row["role"]],
        )
    ]  # fmt: skip


def _by_role(rows: list[Row]) -> list[Row]:
    by_role = {row["role"]: row for row in rows}
    return [by_role[role] for role in ROLES if role in by_role]


def _equal_content(rows: list[Row], words_are_noise: bool) -> list[Check]:
    """By colour and by words; the last one counts."""
    name, by_content = "equal-content", {row["content"]: row for row in rows}
    contents = ["colour"] if words_are_noise else ["colour", "words"]
    checks = []
    for content in contents:
        title = f"far less sharp than near of the same {content}, both at 56 pixels"
        row = by_content.get(content)
        if row is None:
            checks.append(Check(name, title, "no such pair", "", "open"))
            continue
        lower, number = row["less_sharp"], row["photographs"]
        low, high = interval_of(lower, number)
        states: dict[str, State] = {"yes": "good", "no": "bad", "open": "open"}
        state = states[verdict_of((low, high))]
        advice = (
            "Take other photographs, with more depth and in good light, or another depth estimator"
            " (--depth)."
        )
        counts = content == contents[-1]
        checks.append(
            Check(
                name,
                title,
                f"in {lower / number:.0%} of photographs ({lower:,} of {number:,}; 95% interval"
                f" {low:.0%} to {high:.0%}), median far / near {row['far_by_near']:.2g}",
                "more than half",
                state,
                advice if state == "bad" and counts else "",
            )
        )
    return checks
