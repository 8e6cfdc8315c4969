"""Fingerprints of the stages of a build: equal fingerprint, equal result.

Each stage names what determines its result (`fingerprint_inputs`); this module chains them. A stage
depends only on the stages before it and on its own parameters, so that a new dictionary reuses the
patches, and a new k the distance maps.
"""

import hashlib
import json
from dataclasses import dataclass

from lasr.weights.locate import Located
from pipeline.config import BuildConfig
from pipeline.stages import captions, depth, images, measure, rows, select


@dataclass(frozen=True)
class Identities:
    """Fingerprints of the stages of a build, 16 hex digits each."""

    depth: str  # distance maps of photographs
    selection: str  # positions, pixels and measures of patches
    features: str  # CLIP features of patches
    rows: str  # complete rows


def fingerprint(*parts: object) -> str:
    """16 hex digits of plain values: numbers, strings, lists and dictionaries of them."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify(
    config: BuildConfig, depth_weights: Located, clip: Located, dictionary_sha256: str
) -> Identities:
    """The fingerprints of a build with these parameters, weights and words.

    config: with the precision that `auto` means there.
    """
    maps = fingerprint(
        *depth.fingerprint_inputs(depth_weights, config.seed, config.precision),
        *images.fingerprint_inputs(),
    )
    selection = fingerprint(
        *select.fingerprint_inputs(config, maps),
        *measure.fingerprint_inputs(),
        *images.limit_inputs(config.max_pixels),
    )
    features = fingerprint(*captions.features_fingerprint_inputs(clip, config.precision))
    complete = fingerprint(
        *captions.fingerprint_inputs(selection, features, dictionary_sha256),
        *rows.fingerprint_inputs(),
    )
    return Identities(maps, selection, features, complete)
