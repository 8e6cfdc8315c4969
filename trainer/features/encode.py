"""Features of patches, by the encoders before and after training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lasr.cli import progress
from lasr.pictures.png import decode_png
from schemas.manifest import PATCH_SIZE, ManifestError, Role
from trainer.models.encoders import Encoders

BATCH = 64  # pictures per call of the encoder


@torch.inference_mode()
def encode(encoders: Encoders, table: pa.Table, device: torch.device, what: str) -> np.ndarray:
    """Encode the patches of a table, LR first (see `sample.choose`).

    what: shown beside the progress. Returns features in the order of the table, (n, c) float32,
    each of length 1. Raises ManifestError: a patch that cannot be decoded.
    """
    features = []
    with progress(len(table), what, "patch") as bar:
        for role, rows in _batches(table):
            patches = rows.select(["patch_id", "image"]).to_pylist()
            pixels = np.stack([_decode(patch, PATCH_SIZE[role]) for patch in patches])
            pictures = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)
            features.append(torch.nn.functional.normalize(encoders.images(pictures)).cpu().numpy())
            bar.update(len(rows))
    return np.concatenate(features)


def _batches(table: pa.Table) -> Iterator[tuple[Role, pa.Table]]:
    for role in PATCH_SIZE:
        own = table.filter(pc.equal(table["role"], role))
        for start in range(0, len(own), BATCH):
            yield role, own.slice(start, BATCH)


def _decode(patch: dict[str, Any], size: int) -> np.ndarray:
    try:
        pixels = decode_png(patch["image"]["bytes"])
        if pixels.shape == (size, size, 3):
            return pixels
    except ValueError:
        pass
    raise ManifestError(
        f"patch {patch['patch_id']}: not a PNG of {size}x{size}", "build the manifest again"
    )
