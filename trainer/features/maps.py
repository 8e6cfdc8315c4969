"""t-SNE maps of features, and how well their groups are apart."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lasr.errors import require

NEIGHBOURS = 10
ROLE_COLOURS = {"lr": "#d1495b", "hr": "#2f6fff"}  # figure 7a's red and blue


@dataclass(frozen=True)
class View:
    """One map: features (n, c) of length 1, what each point is coloured by, the patches' rows."""

    title: str
    stage: str
    features: np.ndarray
    labels: np.ndarray
    rows: pa.Table


def agreement(features: np.ndarray, labels: np.ndarray, photographs: Sequence[str]) -> float:
    """Share of the nearest neighbours (cosine) that have a patch's own label; 1 = all.

    features: (n, c) of length 1. The NEIGHBOURS nearest patches of *other* photographs count, for
    patches of one photograph resemble each other whatever the encoder learnt. NaN where there is
    only one photograph.
    """
    cosines = features @ features.T
    names = np.asarray(photographs)
    cosines[names[:, None] == names[None, :]] = -np.inf
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    counts = np.isfinite(np.take_along_axis(cosines, nearest, axis=1))
    same = labels[nearest] == labels[:, None]
    return float(same[counts].mean()) if counts.any() else float("nan")


def chance(labels: np.ndarray) -> float:
    """The agreement of labels dealt out at random."""
    shares = np.array(list(Counter(labels.tolist()).values())) / len(labels)
    return float((shares**2).sum())


def score(view: View) -> dict[str, Any]:
    """How well a view's groups are apart, in its feature space.

    agreement: see there; chance: what it is for labels dealt at random. silhouette: mean over
    patches of (b - a) / max(a, b), a and b the mean cosine distances to the own and to the nearest
    other group (Rousseeuw 1987): 1 = far apart, 0 = overlapping.
    """
    metrics = require("sklearn.metrics", "plots")
    groups = len(set(view.labels.tolist()))
    silhouette = float("nan")
    if 2 <= groups < len(view.labels):
        silhouette = float(metrics.silhouette_score(view.features, view.labels, metric="cosine"))
    found = {
        "view": view.title,
        "stage": view.stage,
        "patches": len(view.labels),
        "agreement": agreement(view.features, view.labels, view.rows["image_id"].to_pylist()),
        "chance": chance(view.labels),
        "silhouette": silhouette,
    }
    sentence = "neighbours agree {agreement:.2f} (chance {chance:.2f}), silhouette {silhouette:.3f}"
    return found | {"sentence": sentence.format(**found)}


def tsne(features: np.ndarray, components: int, perplexity: float, seed: int) -> np.ndarray:
    """Places on a plane, (n, 2): PCA to `components` (0: none), then t-SNE."""
    decomposition = require("sklearn.decomposition", "plots")
    manifold = require("sklearn.manifold", "plots")
    if 0 < components < min(features.shape):
        features = decomposition.PCA(components, random_state=seed).fit_transform(features)
    few = max((len(features) - 1) / 3, 1)  # a neighbourhood of all says nothing
    embedding = manifold.TSNE(perplexity=min(perplexity, few), init="pca", random_state=seed)
    places: np.ndarray = embedding.fit_transform(features)
    return places


def draw(
    views: Sequence[View], out: Path, components: int, perplexity: float, seed: int, note: str
) -> tuple[list[dict[str, Any]], pa.Table]:
    """Draw the views, a row for each title and a column for each stage, as a PNG.

    Returns the scores and the coordinates (patch_id, role, view, label, stage, x, y).
    """
    matplotlib = require("matplotlib", "plots")
    matplotlib.use("Agg")  # draws into files; needs no screen
    pyplot = require("matplotlib.pyplot", "plots")
    titles = list(dict.fromkeys(view.title for view in views))
    stages = list(dict.fromkeys(view.stage for view in views))
    size = (6.5 * len(stages), 6 * len(titles))
    figure, grid = pyplot.subplots(len(titles), len(stages), figsize=size, layout="constrained")
    scores, tables = [], []
    for view in views:
        places = tsne(view.features, components, perplexity, seed)
        scores.append(score(view))
        axes = np.atleast_2d(grid)[titles.index(view.title), stages.index(view.stage)]
        dot = float(np.clip(6000 / len(places), 6, 40))
        for number, label in enumerate(_order(view.labels)):
            own = view.labels == label
            colour = ROLE_COLOURS.get(label, f"C{number}")
            name = f"{label.upper() if label in ROLE_COLOURS else label} ({own.sum()})"
            axes.scatter(*places[own].T, s=dot, alpha=0.7, linewidths=0, color=colour, label=name)
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axes.set_title(f"{view.title}, {view.stage}\n{scores[-1]['sentence']}", fontsize=11)
        axes.legend(loc="best", scatterpoints=1, fontsize=9)
        tables.append(_coordinates(view, places))
    figure.suptitle(note, color="#b00020", fontsize=11)
    figure.savefig(out, format="png", dpi=120)
    pyplot.close(figure)
    return scores, pa.concat_tables(tables)


def _order(labels: np.ndarray) -> list[str]:
    """LR before HR; words by how many patches have them."""
    counts = Counter(labels.tolist())
    return sorted(counts, key=lambda label: (label == "hr", -counts[label], label))


def _coordinates(view: View, places: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "patch_id": view.rows["patch_id"],
            "role": view.rows["role"],
            "view": [view.title] * len(places),
            "label": view.labels.tolist(),
            "stage": [view.stage] * len(places),
            "x": places[:, 0].astype(np.float32),
            "y": places[:, 1].astype(np.float32),
        }
    )
