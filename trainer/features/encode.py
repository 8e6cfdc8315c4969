"""Features of patches, by the encoders before and after training."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lasr.cli import progress
from lasr.pictures.png import decode_patch
from schemas.manifest import PATCH_SIZE, Role
from trainer.models.encoders import Encoders

BATCH = 64  # pictures per call of the encoder


@torch.inference_mode()
def encode(encoders: Encoders, table: pa.Table, device: torch.device, what: str) -> np.ndarray:
    """Encode the patches of a table, LR first (see `sample.choose`).

    what: shown beside the progress. Returns features in the order of the table, (n, c) float32,
    each of length 1. Patches that cannot be decoded were left out before.
    """
    features = []
    with progress(len(table), what, "patch") as bar:
        for role, rows in _batches(table):
            contents = pc.struct_field(rows["image"], "bytes").to_pylist()
            pixels = np.stack([decode_patch(content, PATCH_SIZE[role]) for content in contents])
            pictures = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(255)
            features.append(torch.nn.functional.normalize(encoders.images(pictures)).cpu().numpy())
            bar.update(len(rows))
    return np.concatenate(features)


def _batches(table: pa.Table) -> Iterator[tuple[Role, pa.Table]]:
    for role in PATCH_SIZE:
        own = table.filter(pc.equal(table["role"], role))
        for start in range(0, len(own), BATCH):
            yield role, own.slice(start, BATCH)
