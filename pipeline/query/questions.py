"""The ready questions of questions.sql, and the page docs/questions.md generated from them.

python -m pipeline.query.questions > docs/questions.md
"""

from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("questions.sql")


@dataclass(frozen=True)
class Question:
    """A ready question; `why` says how to read the answer."""

    name: str
    title: str
    why: str
    sql: str


def _read(text: str) -> dict[str, Question]:
    """Parse questions, separated by empty lines: `-- name: title`, more comments, one statement."""
    questions = {}
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        comment = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
        sql = [line for line in lines if not line.startswith("-- ")]
        name, title = comment[0].split(": ", 1)
        questions[name] = Question(name, title, " ".join(comment[1:]), "\n".join(sql).rstrip(";"))
    return questions


QUESTIONS = _read(_FILE.read_text(encoding="utf-8"))


def listing() -> str:
    """Names and titles, one on each line."""
    width = max(map(len, QUESTIONS))
    return "\n".join(f"{name:{width}}  {question.title}" for name, question in QUESTIONS.items())


def page() -> str:
    """The text of docs/questions.md."""
    lines = [
        "# Ready questions",
        "",
        "Each question has a name: `lasr query --ask sharp-far`, and `lasr query --list` shows",
        "all names. `--format csv|json`, `--out FILE` and `--save FILE.parquet` work as with SQL.",
        "This page is generated from [questions.sql](../pipeline/query/questions.sql). A test",
        "runs every question; none of them reads a byte of pixels. Their seconds and memory are in",
        "[benchmarks.md](benchmarks.md#questions-at-ten-million-rows).",
    ]
    for question in QUESTIONS.values():
        lines += ["", f"## {question.title}", "", f"`{question.name}`. {question.why}", ""]
        lines += ["```sql", question.sql + ";", "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
