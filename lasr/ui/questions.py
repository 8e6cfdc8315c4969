"""Ask the manifest: ready questions and SQL, with pictures of the patches in the answer."""

from pathlib import Path

from lasr.errors import UserError
from lasr.ui.jobs import Answer, Turns
from lasr.ui.previews import as_uri
from schemas.manifest import open_manifest

ROWS = 200
PICTURES = 60


class Desk:
    """Answers questions about one manifest, which is opened for each: a build may replace it."""

    def __init__(self, manifest: Path, timeout: float, memory_limit: str | None):
        self._manifest, self._timeout, self._memory_limit = manifest, timeout, memory_limit
        self._turns = Turns()

    def about(self) -> Answer:
        """The manifest's name and the ready questions, or why there is nothing to ask."""
        from pipeline.query.questions import QUESTIONS

        answer: Answer = {"name": str(self._manifest), "problem": ""}
        try:
            open_manifest(self._manifest, columns=())
        except UserError as error:
            answer["problem"] = str(error)
        answer["questions"] = [
            {"name": q.name, "title": q.title, "why": q.why, "sql": q.sql}
            for q in QUESTIONS.values()
        ]
        return answer

    def ask(self, sql: str) -> Answer:
        """Answer one question. Raises UserError."""
        import numpy as np

        from pipeline.query.rows import answer_rows
        from pipeline.report.overview import patch_or_cross

        with self._turns.turn():
            found = answer_rows(
                sql,
                open_manifest(self._manifest, columns=()),
                ROWS,
                PICTURES,
                self._timeout,
                self._memory_limit,
            )
        return {
            "columns": found.columns,
            "numbers": found.numbers,
            "rows": found.rows,
            "more": found.more,
            "patches": [
                {
                    "id": patch.patch_id,
                    "role": patch.role,
                    "photograph": patch.photograph,
                    "words": patch.words,
                    "pixels": as_uri(np.asarray(patch_or_cross(patch.png, patch.side))),
                }
                for patch in found.patches
            ],
        }
