"""What determines the result of each stage, as a short fingerprint: same fingerprint, same result.

Each stage hangs on the one before it and on its own parameters alone, so that a new dictionary
finds the patches it had, and a new k the distance maps.
"""

import hashlib
import json
from dataclasses import dataclass

from lasr.weights.locate import Located
from pipeline.config import BuildConfig
from pipeline.stages.depth import draws_noise
from schemas.manifest import PATCH_SIZE, WORDS_PER_PATCH

# Raise a stage's number when the same input gives another result than before.
CODE = {"depth": 2, "selection": 3, "features": 1, "captions": 1}


@dataclass(frozen=True)
class Identities:
    """Fingerprints of the stages of a build, 16 hex digits each."""

    depth: str  # distance maps of photographs
    selection: str  # places and pixels of patches
    features: str  # CLIP's image features of patches
    rows: str  # all of a row


def fingerprint(*parts: object) -> str:
    """16 hex digits of plain values (numbers, texts, lists and dictionaries of them)."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify(
    config: BuildConfig, depth: Located, clip: Located, dictionary_sha256: str
) -> Identities:
    """The stages of a build with these models and words."""
    # The seed counts where something is drawn: DepthFM's noise, the strategies other than depth.
    noise = config.seed if draws_noise(depth) else None
    drawn = config.seed if config.strategy != "depth" else None
    maps = fingerprint(CODE["depth"], depth.identity, noise)
    selection = fingerprint(
        CODE["selection"],
        maps,
        config.k,
        config.strategy,
        [config.separation("lr"), config.separation("hr")],
        config.min_texture,
        drawn,
        PATCH_SIZE,
    )
    features = fingerprint(CODE["features"], clip.identity)
    rows = fingerprint(CODE["captions"], selection, features, dictionary_sha256, WORDS_PER_PATCH)
    return Identities(maps, selection, features, rows)
