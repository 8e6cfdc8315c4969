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
        ("911c5c116d8ede23", "346d14a95580b802", "2e895b606852e827", "ec2d107792f6a4e8"),
    ),
    "the depth strategy draws among equals": (
        {"seed": 7}, DEPTH_ANYTHING, CLIP, WORDS,
        ("911c5c116d8ede23", "357b6d97a17af2a1", "2e895b606852e827", "b4261f534ee93dd7"),
    ),
    "random": (
        {"strategy": "random", "seed": 7, "k": 3}, FORMULA, TINY, WORDS,
        ("1ee2534d4c364b24", "4f8934c744a88dd9", "49cac0e833be78fc", "104260f7b53df18c"),
    ),
    "overlap with texture": (
        {"strategy": "overlap", "min_texture": 0.01}, DEPTH_ANYTHING, CLIP, WORDS,
        ("911c5c116d8ede23", "c5057fee5b739910", "2e895b606852e827", "71a0549b24ab84ac"),
    ),
    "DepthFM draws noise": (
        {"seed": 7}, DEPTHFM, CLIP, WORDS,
        ("dc5f62f5991d84ee", "25bad2d852256843", "2e895b606852e827", "f68660ca9293752d"),
    ),
    "DepthFM with the default seed": (
        {}, DEPTHFM, CLIP, WORDS,
        ("3aba84fe1cc797ed", "1ba2c23defc12ca2", "2e895b606852e827", "42d0a04b60ef74b8"),
    ),
    "own words and separation": (
        {"min_separation": 0, "k": 64}, FORMULA, TINY, OWN_WORDS,
        ("1ee2534d4c364b24", "4ba04f63457d539c", "49cac0e833be78fc", "5d7fd72ecd04fc1c"),
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
    given = {"far_texture": 0.03, "min_texture": 0.01}
    offline, literal = selection(profile="offline"), selection(**given)
    assert literal == selection(profile="offline", **given)
    # A profile's bound is lowered for a photograph without such a patch, a given one is not.
    assert len({offline, literal, selection(profile="offline", far_texture=0.03)}) == 3
    assert selection(profile="offline", far_texture=0, min_texture=0) == selection()


@pytest.mark.parametrize("case", DIGESTS)
def test_digests_stay(case: str) -> None:
    changes, depth, clip, words, expected = DIGESTS[case]
    config = BuildConfig(images=["photos"], precision="float32", **changes)
    assert identify(config, depth, clip, words) == Identities(*expected)
