"""t-SNE maps of features, and how well the groups on them are separated."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lasr.errors import require
from lasr.marks import SOFTWARE

NEIGHBOURS = 10
ROLE_COLOURS = {"lr": "#d1495b", "hr": "#2f6fff"}  # figure 7a's red and blue


@dataclass(frozen=True)
class View:
    """One map: features (n, c) of length 1, labels that colour the points, rows of the patches."""

    title: str
    stage: str
    features: np.ndarray
    labels: np.ndarray
    rows: pa.Table


def agreement(features: np.ndarray, labels: np.ndarray, photographs: Sequence[str]) -> float:
    """Return the share of a patch's nearest neighbours (cosine) with its own label, 0 to 1.

    features: (n, c) of length 1. photographs: the photograph of each patch. Neighbours are the
    NEIGHBOURS nearest patches of *other* photographs, since patches of one photograph resemble each
    other whatever the encoder learned. NaN for a single photograph.
    """
    cosines = features @ features.T
    names = np.asarray(photographs)
    cosines[names[:, None] == names[None, :]] = -np.inf
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    counts = np.isfinite(np.take_along_axis(cosines, nearest, axis=1))
    same = labels[nearest] == labels[:, None]
    return float(same[counts].mean()) if counts.any() else float("nan")


def chance(labels: np.ndarray) -> float:
    """Return the agreement that random labels of the same frequencies would have."""
    shares = np.array(list(Counter(labels.tolist()).values())) / len(labels)
    return float((shares**2).sum())


def score(view: View) -> dict[str, Any]:
    """Measure how well a view's groups are separated, in its feature space.

    agreement, chance: see the functions. silhouette: mean over patches of (b - a) / max(a, b), a
    and b being the mean cosine distances to the own and to the nearest other group (Rousseeuw
    1987); 1 = separated, 0 = overlapping, NaN for a single group.
    """
    metrics = require("sklearn.metrics", "plots")
    groups = len(set(view.labels.tolist()))
    silhouette = float("nan")
    if 2 <= groups < len(view.labels):
        silhouette = float(metrics.silhouette_score(view.features, view.labels, metric="cosine"))
    scores = {
        "view": view.title,
        "stage": view.stage,
        "patches": len(view.labels),
        "agreement": agreement(view.features, view.labels, view.rows["image_id"].to_pylist()),
        "chance": chance(view.labels),
        "silhouette": silhouette,
    }
    sentence = "neighbours agree {agreement:.2f} (chance {chance:.2f}), silhouette {silhouette:.3f}"
    return scores | {"sentence": sentence.format(**scores)}


def tsne(features: np.ndarray, components: int, perplexity: float, seed: int) -> np.ndarray:
    """Map features (n, c) to points (n, 2): PCA to `components` (0: none), then t-SNE."""
    decomposition = require("sklearn.decomposition", "plots")
    manifold = require("sklearn.manifold", "plots")
    if 0 < components < min(features.shape):
        features = decomposition.PCA(components, random_state=seed).fit_transform(features)
    largest = max((len(features) - 1) / 3, 1)  # of few patches, every one would be a neighbour
    embedding = manifold.TSNE(perplexity=min(perplexity, largest), init="pca", random_state=seed)
    points: np.ndarray = embedding.fit_transform(features)
    return points


def draw(
    views: Sequence[View], out: Path, components: int, perplexity: float, seed: int, note: str
) -> tuple[list[dict[str, Any]], pa.Table]:
    """Draw the views as a PNG, with a row for each title and a column for each stage.

    components, perplexity, seed: see `tsne`. note: printed above the maps. Returns the scores and
    the coordinates (patch_id, role, view, label, stage, x, y).
    """
    matplotlib = require("matplotlib", "plots")
    matplotlib.use("Agg")  # draws to files; needs no screen
    pyplot = require("matplotlib.pyplot", "plots")
    titles = list(dict.fromkeys(view.title for view in views))
    stages = list(dict.fromkeys(view.stage for view in views))
    size = (6.5 * len(stages), 6 * len(titles))
    figure, grid = pyplot.subplots(len(titles), len(stages), figsize=size, layout="constrained")
    scores, tables = [], []
    for view in views:
        points = tsne(view.features, components, perplexity, seed)
        scores.append(score(view))
        axes = np.atleast_2d(grid)[titles.index(view.title), stages.index(view.stage)]
        dot = float(np.clip(6000 / len(points), 6, 40))
        for number, label in enumerate(_order(view.labels)):
            own = view.labels == label
            colour = ROLE_COLOURS.get(label, f"C{number}")
            name = f"{label.upper() if label in ROLE_COLOURS else label} ({own.sum()})"
            axes.scatter(*points[own].T, s=dot, alpha=0.7, linewidths=0, color=colour, label=name)
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axes.set_title(f"{view.title}, {view.stage}\n{scores[-1]['sentence']}", fontsize=11)
        axes.legend(loc="best", scatterpoints=1, fontsize=9)
        tables.append(_coordinates(view, points))
    figure.suptitle(note, color="#b00020", fontsize=11)
    figure.savefig(out, format="png", dpi=120, metadata={"Software": SOFTWARE})
    pyplot.close(figure)
    return scores, pa.concat_tables(tables)


def _order(labels: np.ndarray) -> list[str]:
    """Sort labels: LR before HR, and words by their number of patches."""
    counts = Counter(labels.tolist())
    return sorted(counts, key=lambda label: (label == "hr", -counts[label], label))


def _coordinates(view: View, points: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "patch_id": view.rows["patch_id"],
            "role": view.rows["role"],
            "view": [view.title] * len(points),
            "label": view.labels.tolist(),
            "stage": [view.stage] * len(points),
            "x": points[:, 0].astype(np.float32),
            "y": points[:, 1].astype(np.float32),
        }
    )
