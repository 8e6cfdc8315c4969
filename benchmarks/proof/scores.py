"""Scores of several methods on the same pictures, and their tables over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import pyarrow.parquet as pq

from benchmarks.proof.squeeze import distance
from lasr.errors import UserError
from lasr.pictures.read import read_rgb
from trainer.sheets import colour_shift
from trainer.watch.validation import consistency

Scores = dict[str, dict[str, float]]  # by method and metric

# Which way each is better; what is not named here has no better way.
ARROWS = {
    "niqe": "↓", "brisque": "↓", "piqe": "↓", "psnr": "↑", "ssim": "↑", "gmsd": "↓",
    "squeeze": "↓", "consistency": "↑", "colour shift": "↓",
}  # fmt: skip


def score(
    methods: Mapping[str, str],
    images: Path,
    reference: Path | None,
    metrics: Sequence[str],
    out: Path,
) -> Scores:
    """The mean scores of bicubic and of methods over the pictures of a folder.

    methods: weights by name. metrics: of `lasr evaluate`; to these come `consistency` (the PSNR in
    dB of a picture, shrunk again, against its input), `colour shift` (of 1), and, against the
    pictures of `reference`, `squeeze`. Raises UserError: the evaluation failed.
    """
    from trainer.evaluate.__main__ import main as evaluate

    against = ["--reference", str(reference)] if reference else []
    weights = ["bicubic", *(f"{name}={path}" for name, path in methods.items())]
    if evaluate(
        [
            *("--images", str(images), *against, "--out", str(out)),
            *("--weights", *weights, "--metrics", *metrics),
        ]
    ):
        raise UserError("the evaluation failed", "see the lines above")
    found: Scores = {}
    for row in pq.read_table(out / "means.parquet").to_pylist():
        found.setdefault(row["method"], {})[row["metric"]] = row["mean"]
    for method, values in found.items():
        values |= measured(out / "sr" / method, images, reference)
    return found


def measured(made: Path, images: Path, reference: Path | None) -> dict[str, float]:
    """What `lasr evaluate` does not measure, of the pictures of one method."""
    found: dict[str, list[float]] = {}
    for path in sorted(images.iterdir()):
        lr, sr = read_rgb(path), read_rgb(made / f"{path.stem}.png")
        found.setdefault("consistency", []).append(consistency(sr, lr))
        found.setdefault("colour shift", []).append(float(colour_shift(sr[None], lr[None])))
        if reference:
            true = read_rgb(reference / path.name)
            found.setdefault("squeeze", []).append(float(distance(sr[None], true[None])))
    return {name: mean(values) for name, values in found.items()}


def table(scores: Scores, metrics: Sequence[str]) -> str:
    """A line for each method: mean and deviation over its runs (`NAME #SEED`), in Markdown."""
    heads = [f"{name} {ARROWS.get(name, '')}".strip() for name in metrics]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(metrics) + 1) + "|"]
    names: dict[str, list[dict[str, float]]] = {}
    for name, values in scores.items():
        names.setdefault(name.partition(" #")[0], []).append(values)
    for name, runs in names.items():
        cells = []
        for metric in metrics:
            numbers = [run[metric] for run in runs if metric in run]
            spread = f" ± {stdev(numbers):.3f}" if len(numbers) > 1 else ""
            cells.append(f"{mean(numbers):.3f}{spread}" if numbers else "")
        seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        lines.append(f"| {name}{seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)
