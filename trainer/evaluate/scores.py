"""Scores as rows, means, a Markdown table and files."""

import hashlib
import json
import logging
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from lasr.errors import UserError, one_line
from lasr.marks import KEY, signed
from lasr.ownership import is_ours, own_path, write_own
from lasr.terminal.summary import counted
from schemas.digest import Damaged, check_parquet
from schemas.parquet import write_table

log = logging.getLogger(__name__)

# The keys of lines without a digest, of version 0.1.0: scores, and pictures that were made.
_EARLIER = (
    {"key", "score", "device"},
    {"key", "output", "seconds", "parameters", "device"},
)

SCORES, MEANS, MADE = "scores", "means", "made.jsonl"


@dataclass(frozen=True)
class Score:
    """One metric's score of one method's output for one picture, and its circumstances."""

    method: str
    image: str
    metric: str  # name on the command line
    title: str  # name in tables
    higher_is_better: bool
    score: float
    metric_version: str  # of pyiqa; "" if a function of metrics.py computes it
    metric_weights: str
    convention: str
    device: str
    parameters: int | None  # of the network, if it ran here
    seconds: float | None  # to make the output, if the method ran here
    made_on: str | None  # device that made the output
    image_path: str | None
    output_path: str
    reference_path: str | None


_ARROW: dict[object, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    float: pa.float64(),
    str | None: pa.string(),
    int | None: pa.int64(),
    float | None: pa.float64(),
}
SCHEMA = pa.schema([(column.name, _ARROW[column.type]) for column in fields(Score)])


def files(folder: Path) -> list[Path]:
    """The files of an evaluation, apart from pictures and what is known of them."""
    tables = [
        folder / f"{stem}{suffix}" for stem in (SCORES, MEANS) for suffix in (".parquet", ".csv")
    ]
    return [*tables, folder / f"{MEANS}.md", folder / f"{SCORES}.jsonl"]


def is_old(folder: Path) -> bool:
    """Whether version 0.1.0 wrote an evaluation: its pictures have no mark."""
    path = folder / f"{SCORES}.parquet"
    return is_ours(path) and KEY.encode() not in (pyarrow.parquet.read_schema(path).metadata or {})


def digests(made: Path) -> set[str]:
    """The sha256 of every picture that `made.jsonl` says was made; empty if it is not ours."""
    return set(Cache(made).all("output")) if is_ours(made) else set()


def write(folder: Path, scores: list[Score]) -> None:
    """Write the files of an evaluation, each atomically.

    scores.{csv,parquet}: one row per score. means.{csv,parquet}: one row per method and metric.
    means.md: the table that `markdown` returns.
    """
    _write_both(folder / SCORES, [asdict(score) for score in scores], SCHEMA)
    _write_both(folder / MEANS, means(scores))
    write_own(folder / f"{MEANS}.md", signed(markdown(scores)).encode())


def read(folder: Path) -> list[Score]:
    """Read the scores of an evaluation's folder. Raises UserError: none, or damaged ones."""
    path = folder / f"{SCORES}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file", "give a folder that `lasr evaluate` wrote")
    try:
        check_parquet(path)
        rows = pyarrow.parquet.read_table(path, schema=SCHEMA).to_pylist()
    except (Damaged, pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: damaged ({one_line(error, 100)})", "repeat `lasr evaluate`, which is cached"
        ) from error
    return [Score(**row) for row in rows]


def means(scores: Iterable[Score]) -> list[dict[str, Any]]:
    """Return one row per method and metric: mean, number of pictures, and the metric's details."""
    groups: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.method, score.metric].append(score)
    return [
        {
            "method": method,
            "metric": metric,
            "mean": statistics.fmean(score.score for score in group),
            "images": len(group),
            "higher_is_better": group[0].higher_is_better,
            "metric_version": _common(score.metric_version for score in group),
            "metric_weights": _common(score.metric_weights for score in group),
            "convention": _common(score.convention for score in group),
            "device": _common(score.device for score in group),
            "parameters": group[0].parameters,
            "seconds": _median_seconds(group),
            "made_on": _common(score.made_on or "" for score in group),
        }
        for (method, metric), group in groups.items()
    ]


def markdown(scores: list[Score]) -> str:
    """Return a table with one line per method and one column per metric, as table 7 of the paper.

    Below the table are the metrics' versions, weights and conventions.
    """
    if not scores:
        return "no scores"
    titles = {s.metric: f"{s.title} {'↑' if s.higher_is_better else '↓'}" for s in scores}
    by_method: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        by_method[score.method].append(score)
    mean = {(row["method"], row["metric"]): row["mean"] for row in means(scores)}
    large = {metric for (_, metric), value in mean.items() if abs(value) >= 10}
    digits = {metric: 2 if metric in large else 4 for metric in titles}
    rows = [["Method", *titles.values(), "Params (M)", "Runtime (s)", "Images"]]
    for method, group in by_method.items():
        images = [sum(s.metric == metric for s in group) for metric in titles]
        least, most = min(n for n in images if n), max(images)
        seconds = _median_seconds(group)
        rows.append(
            [
                method,
                *(
                    f"{mean[method, m]:.{digits[m]}f}" if (method, m) in mean else "-"
                    for m in titles
                ),
                f"{group[0].parameters / 1e6:.3g}" if group[0].parameters else "-",
                "-" if seconds is None else f"{seconds:.3g}",
                str(most) if least == most else f"{least}-{most}",
            ]
        )
    return "\n".join([*_aligned(rows), "", *_details(scores)])


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"| {row[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join(
        ("-" * (width + 1) + ":") if column else ":" + "-" * (width + 1)
        for column, width in enumerate(widths)
    )
    return [lines[0], rule + "|", *lines[1:]]


def _details(scores: list[Score]) -> list[str]:
    lines = {
        f"- {s.title}: "
        + ", ".join(
            part
            for part in (
                s.metric_version and f"pyiqa {s.metric_version}",
                s.metric_weights,
                s.convention,
                s.device,
            )
            if part
        ): None
        for s in scores
    }
    if devices := sorted({score.made_on for score in scores if score.made_on}):
        where = ", ".join(devices)
        lines[f"- Runtime: median over the pictures, after a warm-up, on {where}"] = None
    return list(lines)


def _median_seconds(scores: list[Score]) -> float | None:
    seconds = {s.image: s.seconds for s in scores if s.seconds is not None}
    return statistics.median(seconds.values()) if seconds else None


def _common(values: Iterable[str]) -> str:
    return " / ".join(sorted(set(values)))


def _write_both(stem: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    with own_path(stem.with_suffix(".parquet")) as temporary:
        write_table(temporary, table, {})
    with own_path(stem.with_suffix(".csv")) as temporary:
        pyarrow.csv.write_csv(table, temporary)


class Cache:
    """Maps a key to plain values. A value is on disk when `add` returns, so a kill loses one.

    Each line holds a digest of itself, but those of version 0.1.0, which are taken as they are.
    Damaged lines are named, and their values computed again.
    """

    def __init__(self, path: Path):
        """Read the file at `path`, if there is one."""
        self._path = path
        self._values: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        complete, damaged = 0, []
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # cut short by a kill
                complete += len(line)
                try:
                    value = json.loads(line)
                    if value.keys() not in _EARLIER and value.pop("digest") != _digest(value):
                        raise ValueError("other values than were written")
                    self._values[value.pop("key")] = value
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    damaged.append(number)
        if damaged:
            some = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
            log.warning(
                "%s: %s, what was there is computed again: %s",
                *(path, counted(len(damaged), "damaged line"), some),
            )
        os.truncate(path, complete)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the value added last under `key`, or None."""
        return self._values.get(key)

    def all(self, name: str) -> list[Any]:
        """One value of each key."""
        return [value[name] for value in self._values.values() if name in value]

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Append one line and flush it to disk."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            line = {"key": key, **value}
            file.write(json.dumps(line | {"digest": _digest(line)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._values[key] = value


def _digest(line: dict[str, Any]) -> str:
    """16 hex digits of a line's values."""
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]
