"""Scores of several methods on the same pictures, and their tables over seeds."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import pyarrow.parquet as pq

from benchmarks.proof.squeeze import distance
from lasr.device import Device
from lasr.errors import UserError
from lasr.pictures.read import read_rgb
from lasr.weights.digests import sha256
from trainer.config import TrainConfig
from trainer.sheets import colour_shift
from trainer.watch.validation import consistency

Scores = dict[str, dict[str, float]]  # by method and metric

# Which way each is better; what is not named here has no better way.
ARROWS = {
    "niqe": "↓", "brisque": "↓", "piqe": "↓", "psnr": "↑", "ssim": "↑", "gmsd": "↓",
    "squeeze": "↓", "consistency": "↑", "colour shift": "↓",
}  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """Scores methods on the pictures of a folder, each method once.

    images: LR pictures. reference: their true enlargements, if known. metrics: of `lasr evaluate`;
    to these come `consistency` (the PSNR in dB of a picture, shrunk again, against its input),
    `colour shift` (of 1), and, against `reference`, `squeeze`. out: a folder for each method in it.
    """

    images: Path
    reference: Path | None
    metrics: tuple[str, ...]
    out: Path
    device: Device = "auto"

    def run(self, run: TrainConfig) -> dict[str, float]:
        """The mean scores of a run that has ended."""
        return self.network(run.folder)

    def network(self, folder: Path) -> dict[str, float]:
        """The mean scores of the network in a folder."""
        return self(f"{folder.parent.name}-{folder.name}", str(folder / "model.safetensors"))

    def __call__(self, method: str, weights: str) -> dict[str, float]:
        """The mean scores of a method. Raises UserError: the evaluation failed."""
        folder, file = self.out / method, Path(weights)
        known = self.out / f"{method}.json"  # apart from pictures and weights, which are large
        version = {"weights": sha256(file) if file.is_file() else weights, "of": list(self.metrics)}
        if known.exists() and (content := json.loads(known.read_text()))["version"] == version:
            return dict(content["numbers"])
        numbers = self.scored(folder, weights)
        known.write_text(json.dumps({"version": version, "numbers": numbers}, indent=1))
        return numbers

    def scored(self, folder: Path, weights: str) -> dict[str, float]:
        """As if called, and nothing is known."""
        from trainer.evaluate.__main__ import main as evaluate

        against = ["--reference", str(self.reference)] if self.reference else []
        said = io.StringIO()  # its table of one method
        with contextlib.redirect_stdout(said):
            status = evaluate(
                [
                    *("--images", str(self.images), *against, "--out", str(folder)),
                    *("--weights", weights if weights == "bicubic" else f"made={weights}"),
                    *("--metrics", *self.metrics, "--device", self.device),
                ]
            )
        if status:
            raise UserError("the evaluation failed", "see the lines above")
        means = pq.read_table(folder / "means.parquet").to_pylist()
        made = next(path for path in sorted((folder / "sr").iterdir()) if path.is_dir())
        return {row["metric"]: row["mean"] for row in means} | measured(
            made, self.images, self.reference
        )


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
