"""Rows that a run skips: skipped.jsonl, and how many are too many.

A row is counted and listed once, at the step that met it first. Which rows a step meets does not
depend on the number of processes, so neither do the file and the moment when a run has skipped too
many.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from lasr.errors import UserError, writing
from lasr.files import write_bytes
from lasr.terminal.summary import counted
from schemas.manifest import ManifestError
from trainer.data.dataset import Patches
from trainer.data.index import NO_ROLE, ROLES
from trainer.data.reader import BadRow

log = logging.getLogger(__name__)

NAME = "skipped.jsonl"
FEW = 4  # rows that may be skipped in any manifest: with fewer rows, a share says little


def most_skipped(rows: int, share: float) -> int:
    """How many rows of a manifest of `rows` may be skipped: the share of them, but at least FEW.

    A share of 0 allows none.
    """
    return max(int(rows * share), FEW) if share else 0


def check_index(patches: Patches, share: float) -> None:
    """Raise ManifestError if more rows than allowed are bad as far as the small columns tell."""
    index, rows = patches.reader.index, len(patches.reader.index.role)
    faulty = index.faulty
    most = most_skipped(rows, share)
    if len(faulty) > most:
        fault, fix = index.describe(int(faulty[0]))
        raise ManifestError(
            f"{patches.manifest.where}: {len(faulty)} of {counted(rows, 'row')} cannot be trained"
            f" on, and --max-skipped {share:g} allows {most}; row {faulty[0]} {fault}",
            fix,
        )


class SkippedRows:
    """The rows that a run has skipped so far, the same on every process.

    known: rows in skipped.jsonl, as `read_skipped` returns them. path: of skipped.jsonl, on the
    process that writes it.
    """

    def __init__(self, patches: Patches, share: float, known: dict[int, str], path: Path | None):
        self.patches, self.share, self.path = patches, share, path
        rows = len(patches.reader.index.role)
        self.known = {row: reason for row, reason in known.items() if row < rows}
        self.most = most_skipped(rows, share)
        self._warned = bool(known)
        index = patches.reader.index  # rows without a role are in no batch
        lost = [row for row in index.faulty.tolist() if index.role[row] == NO_ROLE]
        self.add(0, [BadRow(row, index.fault_of(row)) for row in lost])

    @property
    def too_many(self) -> bool:
        """Whether more rows than --max-skipped allows have been skipped."""
        return len(self.known) > self.most

    def add(self, step: int, rows: list[BadRow]) -> None:
        """Note rows that a step met, of all processes; those that are known are not noted again."""
        new = {row.row: row for row in rows if row.row not in self.known}
        ordered = [row for _, row in sorted(new.items())]
        self.known |= {row.row: row.reason for row in ordered}
        if self.path and ordered:
            lines = [self._line(step, row) for row in ordered]
            self._warn(lines[0])
            with writing(self.path, "free some disk space and run the same command"):
                append_lines(self.path, lines)

    def refuse(self) -> None:
        """Raise UserError for too many skipped rows."""
        row, reason = next(iter(self.known.items()))
        rows = len(self.patches.reader.index.role)
        raise UserError(
            f"{self.patches.manifest.where}: {len(self.known)} of {counted(rows, 'row')} cannot be"
            f" trained on, and --max-skipped {self.share:g} allows {self.most}; row {row} {reason};"
            f" {NAME} in the run's folder lists all",
            "build the manifest again, or allow more and run the same command, which resumes",
        )

    def _line(self, step: int, bad: BadRow) -> dict[str, Any]:
        part, row, patch_id = self.patches.reader.locate(bad.row)
        role = int(self.patches.reader.index.role[bad.row])
        return {
            "step": step,
            "patch_id": patch_id,
            "part": part,
            "row": row,
            "role": None if role == NO_ROLE else ROLES[role],
            "reason": bad.reason,
            "manifest_row": bad.row,
        }

    def _warn(self, line: dict[str, Any]) -> None:
        """Warn of the first row, once in a run."""
        if not self._warned:
            self._warned = True
            role = line["role"]
            instead = f"the next '{role}' patch takes its place" if role else "it is left out"
            log.warning(
                "step %d: row %d of %s %s: %s; further rows are listed in %s",
                *(line["step"], line["row"], line["part"], line["reason"], instead, self.path),
            )


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Append lines of JSON, durably: a checkpoint may follow."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def trim_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines of a JSON Lines file after `step`; returns the others, decoded.

    A run that resumes after `step` writes the later ones again. Damaged lines stay as they are,
    bytes and all, and are named: what they said is unknown. Only a last line that a kill cut short
    goes, which the next line would continue: no checkpoint is of its step.
    """
    lines = read_lines(path, step)
    if damaged := [number for number, (_, line) in enumerate(lines, start=1) if line is None]:
        some = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        number = counted(len(damaged), "damaged line")
        log.warning("%s: %s, left in place: %s", path, number, some)
    if path.exists():
        write_bytes(path, b"".join(text + b"\n" for text, _ in lines))
    return [line for _, line in lines if line is not None]


def read_lines(path: Path, step: int) -> list[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a JSON Lines file up to `step`, as bytes and decoded; None: it is damaged."""
    *complete, unfinished = (path.read_bytes() if path.exists() else b"").split(b"\n")
    lines: list[tuple[bytes, dict[str, Any] | None]] = []
    for number, text in enumerate([*complete, unfinished]):
        try:
            line = json.loads(text)
            if type(line["step"]) is not int:
                raise ValueError("no number of a step")
            is_later = line["step"] > step
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(complete):
                lines.append((text, None))
        else:
            if not is_later:
                lines.append((text, line))
    return lines


def read_skipped(folder: Path, step: int) -> dict[int, str]:
    """The rows that a run had skipped after `step`, and why."""
    known = {}
    for _, line in read_lines(folder / NAME, step):
        row, reason = (line or {}).get("manifest_row"), (line or {}).get("reason")
        if isinstance(row, int) and isinstance(reason, str) and row >= 0:
            known[row] = reason
    return known
