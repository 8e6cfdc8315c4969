"""Fingerprints of builds made before: a digest that changes invalidates every finished part."""

from typing import Any

import pytest

from lasr.weights.locate import Located
from pipeline.build.fingerprint import Identities, identify
from pipeline.config import BuildConfig

DEPTH_ANYTHING = Located(
    "depth-anything-v2-small", None, "depth-anything-v2-small@0123456789ab", "depth_anything"
)
FORMULA = Located("colour-attenuation", None, "colour-attenuation@built-in", "colour_attenuation")
DEPTHFM = Located("depthfm-v1", None, "depthfm-v1@fedcba987654", "depthfm")
CLIP = Located("clip-vit-l-14", None, "clip-vit-l-14@00112233aabb", "open_clip")
TINY = Located("tiny-clip", None, "tiny-clip@built-in", "open_clip")
WORDS, OWN_WORDS = "ab" * 32, "cd" * 32

DIGESTS: dict[str, tuple[dict[str, Any], Located, Located, str, tuple[str, str, str, str]]] = {
    "defaults": (
        {}, DEPTH_ANYTHING, CLIP, WORDS,
        ("911c5c116d8ede23", "be4ee3042d9e33ab", "2e895b606852e827", "c2486294a6033fa7"),
    ),
    "the depth strategy draws among equals": (
        {"seed": 7}, DEPTH_ANYTHING, CLIP, WORDS,
        ("911c5c116d8ede23", "d5df9db205a169bf", "2e895b606852e827", "7f279e21026ffd40"),
    ),
    "random": (
        {"strategy": "random", "seed": 7, "k": 3}, FORMULA, TINY, WORDS,
        ("1ee2534d4c364b24", "50d9ae3c9f8bfd31", "49cac0e833be78fc", "b21b7089742ea9b0"),
    ),
    "overlap with texture": (
        {"strategy": "overlap", "min_texture": 0.01}, DEPTH_ANYTHING, CLIP, WORDS,
        ("911c5c116d8ede23", "9c28c3bffe9bb0df", "2e895b606852e827", "c10899e794fc019c"),
    ),
    "DepthFM draws noise": (
        {"seed": 7}, DEPTHFM, CLIP, WORDS,
        ("dc5f62f5991d84ee", "f18695a417d2d7f0", "2e895b606852e827", "12ca81ad0fb4d573"),
    ),
    "DepthFM with the default seed": (
        {}, DEPTHFM, CLIP, WORDS,
        ("3aba84fe1cc797ed", "0c95ff16fedb8676", "2e895b606852e827", "157bb52837a73970"),
    ),
    "own words and separation": (
        {"min_separation": 0, "k": 64}, FORMULA, TINY, OWN_WORDS,
        ("1ee2534d4c364b24", "ed51ee1406b73990", "49cac0e833be78fc", "4f31294941734ba5"),
    ),
}  # fmt: skip


def test_far_texture_counts_where_it_filters() -> None:
    """So that builds without it, or with a stricter filter of both roles, keep their parts."""

    def selection(**changes: Any) -> str:
        config = BuildConfig(images=["photos"], precision="float32", **changes)
        return identify(config, FORMULA, TINY, WORDS).selection

    assert selection(far_texture=0.0) == selection()
    assert selection(far_texture=0.01, min_texture=0.02) == selection(min_texture=0.02)
    assert selection(far_texture=0.03) != selection()
    assert selection(profile="offline") == selection(far_texture=0.03)
    assert selection(profile="offline", far_texture=0) == selection()


@pytest.mark.parametrize("case", DIGESTS)
def test_digests_stay(case: str) -> None:
    changes, depth, clip, words, expected = DIGESTS[case]
    config = BuildConfig(images=["photos"], precision="float32", **changes)
    assert identify(config, depth, clip, words) == Identities(*expected)
