"""What a build says at its end, and before it starts with --dry-run: counts that reconcile."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from lasr.errors import printable
from lasr.pictures.formats import by_suffix, why_not_read
from lasr.terminal.summary import counted
from pipeline.inputs.photographs import Found

NAMED = 5  # photographs that a line names
_DEFAULT = "data/patches.parquet"  # that `lasr query` takes without --manifest


@dataclass(frozen=True)
class Summary:
    """What a finished build contains, and what became of everything that was found."""

    manifest: str
    images: str  # path of the catalogue
    parts: int  # files of the manifest
    status: dict[str, int]  # photographs
    patches: dict[str, int]  # by role
    # Photographs that are not used: status, reason if all share it, number, first names.
    unused: list[tuple[str, str, int, list[str]]] = field(default_factory=list)
    passed: str = ""  # files that are no photographs, with counts
    gone: int = 0  # photographs of the earlier build that are not there any more
    kept: int = 0  # photographs out of reach whose rows stay
    left_out: int = 0  # by --limit

    def __str__(self) -> str:
        """The lines that `lasr build` prints."""
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.status.items()))
        lines = [f"photographs: {sum(self.status.values())}: {counts}"]
        lines += [f"  {line}" for line in describe_unused(self.unused)]
        statuses = dict.fromkeys(status for status, *_ in self.unused)
        lines += [f"  {self._query(status)}" for status in statuses]
        if again := sum(self.status.get(name, 0) for name in ("failed", "unreadable")):
            lines.append(f"  run the same command to retry {again} failed or unreadable ones")
        if self.left_out:
            lines.append(f"left out:    {self.left_out} by --limit")
        if self.gone:
            lines.append(f"gone:        {photographs(self.gone)} of the earlier build are gone")
        if self.kept:
            lines.append(f"kept:        {photographs(self.kept)} out of reach; their rows stay")
        if self.passed:
            lines.append(f"passed over: {self.passed}")
        lines += [
            f"patches:     {self.patches['lr']} lr, {self.patches['hr']} hr",
            f"manifest:    {printable(self.manifest)} ({counted(self.parts, 'file')})",
            f"catalogue:   {printable(self.images)}",
        ]
        return "\n".join(lines)

    def _query(self, status: str) -> str:
        where = "" if self.manifest == _DEFAULT else f" --manifest {shlex.quote(self.manifest)}"
        sql = f"SELECT path, error FROM images WHERE status = '{status}'"
        return f'lasr query "{sql}"{where}'


def unused(catalogue: pa.Table) -> list[tuple[str, str, int, list[str]]]:
    """The photographs of a catalogue that are not used: see `Summary.unused`.

    Those of one status share a line, but for `unsupported`, where each format has its own.
    """
    columns = (catalogue[name].to_pylist() for name in ("status", "error", "path"))
    groups: dict[tuple[str, str], list[str]] = {}
    reasons: dict[str, Counter[str]] = {}
    for status, error, path in zip(*columns, strict=True):
        if status != "ok":
            own = (error or "") if status == "unsupported" else ""
            groups.setdefault((status, own), []).append(path)
            reasons.setdefault(status, Counter())[error or ""] += 1
    return [
        (status, own or _shared(reasons[status]), len(paths), paths[:NAMED])
        for (status, own), paths in sorted(groups.items())
    ]


def _shared(reasons: Counter[str]) -> str:
    return next(iter(reasons)) if len(reasons) == 1 else ""


def describe_unused(groups: Sequence[tuple[str, str, int, list[str]]]) -> list[str]:
    """A line for each group of `unused`."""
    return [
        f"{count} {status}{f' ({reason})' if reason else ''}: {_names(names, count)}"
        for status, reason, count, names in groups
    ]


def describe_found(found: Sequence[Found]) -> list[tuple[str, str]]:
    """Lines about photographs that are not read yet, as a title and a text: what suffixes tell."""
    suffixes = Counter(_suffix(photograph) for photograph in found)
    lines = [("found", ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common()))]
    not_read: dict[str, list[str]] = {}
    for photograph in found:
        kind = by_suffix(photograph.name)
        if kind and (why := why_not_read(kind)):
            not_read.setdefault(why, []).append(photograph.name)
        elif photograph.size < 0:
            not_read.setdefault("not a regular file", []).append(photograph.name)
    for reason, names in not_read.items():
        lines.append(("not read", f"{len(names)} ({reason}): {_names(names[:NAMED], len(names))}"))
    return lines


def photographs(number: int) -> str:
    """A number with its noun."""
    return counted(number, "photograph")


def _names(names: Sequence[str], count: int) -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return ", ".join(printable(name) for name in names) + more


def _suffix(photograph: Found) -> str:
    last = photograph.name.rsplit("/", 1)[-1]
    if "." in last:
        return f".{last.rsplit('.', 1)[1].lower()}"
    is_row = photograph.member is not None and photograph.member.column
    return "rows of Parquet" if is_row else "without suffix"
