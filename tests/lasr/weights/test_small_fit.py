"""What is known of crops, and the heads as open_clip builds them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp

from lasr.errors import UserError
from lasr.weights.small import crops
from lasr.weights.small.fit import (
    GROUPS,
    Heads,
    Samples,
    group_labels,
    mixed,
    region_shares,
)

NOTHING = np.empty(0, np.uint8)


@pytest.mark.parametrize(
    ("rgb", "known"),
    [
        ((255, 0, 0), {"red"}), ((255, 140, 0), {"orange"}), ((250, 230, 20), {"yellow", "bright"}),
        ((20, 160, 30), {"green"}), ((20, 40, 220), {"blue", "dark"}),
        ((110, 20, 160), {"purple", "dark"}),
        ((255, 120, 190), {"pink"}), ((110, 65, 25), {"brown"}), ((128, 128, 128), {"gray"}),
        ((250, 250, 250), {"white", "bright"}), ((5, 5, 5), {"black", "dark"}),
    ],
)  # fmt: skip
def test_colours_and_light_have_their_names(rgb: tuple[int, ...], known: set[str]) -> None:
    pixels = np.broadcast_to(np.array(rgb, np.uint8), (crops.SIDE, crops.SIDE, 3)).copy()
    shares = np.bincount(crops.colours(pixels).ravel(), minlength=len(crops.COLOURS))
    assert crops.measured(pixels, shares / shares.sum()) == known


def test_each_fault_names_its_own_group_alone() -> None:
    kinds = [frozenset[str](), frozenset({"blurry"}), frozenset({"noisy", "red"})]
    some = [crops.Crop(NOTHING, 0, 0, 0, 56, known, NOTHING) for known in kinds]
    labels = {group: group_labels(some, group).tolist() for group in GROUPS}
    assert labels["sharpness"] == [0, 1, -1] and labels["noise"] == [0, -1, 1]
    assert labels["quality"] == [0, 1, 1] and labels["light"] == [-1, -1, -1]
    assert labels["colour"] == [-1, -1, crops.COLOURS.index("red")]


def test_crops_repeat_and_differ_by_seed() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    first, again, other = (
        list(crops.random_crops(picture, 0, 6, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].pixels, other[0].pixels)
    for crop in first:
        assert 56 <= crop.side <= 90 and crop.x + crop.side <= 120 and crop.y + crop.side <= 90
        assert crop.pixels.shape == (224, 224, 3)


def test_words_of_regions_count_by_what_a_crop_covers() -> None:
    left = crops.Region((0, 0, 5, 10), ("sky", "blue"))
    right = crops.Region((5, 0, 10, 10), ("tree",))
    photograph = crops.Photograph("package", "file", False, (left, right))
    places = [(0, 0, 50), (50, 0, 50), (30, 0, 40), (140, 0, 50)]
    some = [crops.Crop(NOTHING, 0, *place, frozenset(), NOTHING) for place in places]
    samples = Samples(torch.empty(4, 0), torch.zeros(4, 1280), some, [(100, 100)])
    shares = region_shares(samples, [photograph], ["tree", "sky", "blue"])
    assert shares[0, 0] == 0 and shares[0, 1] > shares[0, 2] > 0
    assert shares[1].tolist() == [1, 0, 0]
    assert (shares[2] > 0).all() and shares[3].sum() == 0  # outside: nothing is known
    torch.testing.assert_close(shares[:3].sum(dim=1), torch.ones(3))


def test_stored_heads_answer_as_the_learned_ones() -> None:
    torch.manual_seed(0)
    features = 2 + 3 * torch.rand(64, 1280)
    heads = Heads(features).eval()
    stored = heads.tensors()
    assert sum(tensor.nbytes for tensor in stored.values()) < 3e6
    theirs = Mlp(1280, 768, 384)  # the head of open_clip's TimmModel
    prefix = "visual.head.mlp."
    theirs.load_state_dict({
        name.removeprefix(prefix): tensor.float()
        for name, tensor in stored.items() if name.startswith(prefix)
    })  # fmt: skip
    with torch.no_grad():
        cosines = (F.normalize(theirs(features), dim=1) * heads.images(features)).sum(dim=1)
    assert cosines.min() > 0.999  # float16


def test_a_pair_of_crops_has_the_features_of_a_collage() -> None:
    first, second, third = torch.rand(3, 5, 8, 8)  # maps before they are pooled
    flat = [  # alike everywhere, so that a part of a crop is as good as all of it
        each.mean(dim=(1, 2), keepdim=True).expand_as(each) for each in (first, second, third)
    ]
    collage = torch.cat([flat[0][:, :, :6], flat[2][:, :, 6:]], dim=2)
    pooled = torch.stack([each.mean(dim=(1, 2)) for each in flat])
    rows, part = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0.25], [0.0]])
    expected = torch.stack([collage.mean(dim=(1, 2)), pooled[1]])
    torch.testing.assert_close(mixed(pooled, rows, part), expected)


def test_missing_photographs_name_their_packages() -> None:
    wanted = [crops.Photograph("no-such-package", "pictures/a.jpg", False)]
    with pytest.raises(UserError, match="no photographs of no-such-package"):
        crops.find(wanted, [])
