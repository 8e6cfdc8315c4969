"""Distance from the layout of a scene: a formula without weights, the profile `offline`'s."""

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from lasr.device import Precision
from lasr.weights.locate import Located
from pipeline.stages.depth import DepthModel, normalise

if TYPE_CHECKING:
    import torch

IS_NETWORK = False
DRAWS_NOISE = False

# docs/decisions.md: how much the result depends on each of these, and which other cues were tried.
SIDE = 160  # longer side of the map: outlines of objects rather than their texture
STEP = 1.0  # cost of a step between equal pixels; 1 in L*a*b* is a just noticeable difference
SKYLINE = 0.5  # the left and right border are background down to this part of the height


def recognises(path: Path) -> bool:
    """Never: a formula has no files."""
    return False


def load(located: Located, device: "torch.device", seed: int, precision: Precision) -> DepthModel:
    """The formula as an estimator of one photograph per call."""
    # All work is in `prepare`, which runs in threads.
    return DepthModel(located.identity, scene_layout, list, 1, IS_NETWORK)


def scene_layout(photograph: np.ndarray) -> np.ndarray:
    """What belongs to the ground at the bottom is near; what belongs to the background is far.

    H x W x 3 uint8 -> h x w float32 in 0..1, h and w at most SIDE. Two cues of single pictures in
    one term, G / (B + G), with B and G the lengths of the cheapest paths from a pixel to the
    background (upper borders) and to the ground (lower border), where edges cost (Bai and Sapiro,
    "A geodesic framework for fast interactive image and video segmentation and matting", ICCV
    2007):

    - Height in the picture. In an even picture the term is the height. On the ground, what is
      higher up is farther away, and what stands on it is as far as its foot (Torralba and Oliva,
      "Depth estimation from image structure", PAMI 2002; Hoiem, Efros, Hebert, "Automatic photo
      pop-up", SIGGRAPH 2005).
    - Outlines. Background reaches the upper borders without crossing strong edges, objects do not
      (Wei, Wen, Zhu, Sun, "Geodesic saliency using background priors", ECCV 2012).
    """
    scale = min(SIDE / max(photograph.shape[:2]), 1)
    height, width = (max(round(side * scale), 2) for side in photograph.shape[:2])
    pixels = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)
    # Imported here: `lasr build --help` does without it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    nodes = np.arange(height * width).reshape(height, width)
    graph = coo_array(_steps(pixels, nodes), shape=(nodes.size, nodes.size)).tocsr()

    def paths(borders: np.ndarray) -> np.ndarray:
        cheapest = dijkstra(graph, directed=False, indices=np.unique(borders), min_only=True)
        return np.asarray(cheapest).reshape(height, width)

    sides = nodes[: int(height * SKYLINE), [0, -1]]
    background = paths(np.concatenate([nodes[0], sides.ravel()]))
    ground = paths(nodes[-1])
    return normalise(ground / (background + ground))  # no pixel belongs to both


def _steps(
    pixels: np.ndarray, nodes: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The cost of a step between neighbours along x and y: their difference in L*a*b*, and STEP.

    pixels: h x w x 3 uint8. nodes: h x w, the number of each pixel. Returns costs, and the numbers
    of the two neighbours.
    """
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), 1)
    across = np.linalg.norm(np.diff(lab, axis=1), axis=2)
    down = np.linalg.norm(np.diff(lab, axis=0), axis=2)
    return np.concatenate([across.ravel(), down.ravel()]) + STEP, (
        np.concatenate([nodes[:, :-1].ravel(), nodes[:-1].ravel()]),
        np.concatenate([nodes[:, 1:].ravel(), nodes[1:].ravel()]),
    )
