"""The features against those of timm's strided network, and what the term prefers."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lasr.errors import UserError
from lasr.weights.locate import locate
from tests.support.weights import load_vgg
from trainer.models.lite0 import BLUR, Lite0
from trainer.models.vgg import vgg_term


@pytest.fixture(scope="module")
def network() -> Lite0:
    found = load_vgg("lite0-features")
    assert isinstance(found, Lite0)
    return found


def test_features_are_those_of_the_strided_network_at_every_pixel(network: Lite0) -> None:
    file = locate("lite0-features", "vgg").path
    state = torch.load(str(file), weights_only=True)
    strided = timm.create_model("tf_efficientnet_lite0").eval()
    strided.load_state_dict(dict(zip(strided.state_dict(), state.values(), strict=True)))
    pictures = torch.rand(2, 3, 64, 64)
    ours = network(pictures)
    with torch.no_grad():
        x = stem = strided.bn1(strided.conv_stem((pictures * 255 - 127) / 128))
        x = strided.blocks[1][0](strided.blocks[0](x))
        second = strided.blocks[1][1]
        expansion = second.bn1(second.conv_pw(x))
        expansion = expansion[:, [i for i in range(144) if i not in BLUR]]
    # TensorFlow's padding samples at pixels 1, 3, 5, …, and of these at the 2nd, 4th, …
    inside = slice(2, -2)
    for layer, expected, first, step in (
        ("stem", stem, 1, 2),
        ("expansion", expansion, 3, 4),
    ):
        sampled = ours[layer][:2, :, first::step, first::step]
        torch.testing.assert_close(
            sampled[..., inside, inside], expected[..., inside, inside], atol=1e-4, rtol=1e-4
        )
    turned = network(pictures.flip(2, 3))
    assert torch.equal(turned["expansion"][:2], ours["expansion"][2:])


@pytest.mark.parametrize("side", [56, 57])
def test_only_the_picture_gets_a_gradient(network: Lite0, side: int) -> None:
    lr = torch.rand(1, 3, side, side)
    sr = F.interpolate(lr, scale_factor=4.0).requires_grad_()
    vgg_term(network, sr, lr).backward()
    assert sr.grad is not None and sr.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def crop(pixels: Tensor, top: int, left: int) -> Tensor:
    return pixels[top : top + 96, left : left + 96].permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x.flip(3),
        lambda x: (x * torch.tensor([1.1, 1.0, 0.9]).view(1, 3, 1, 1)).clamp(0, 1),
        lambda x: gaussian_blur(x, [13, 13], [2.0, 2.0]),
        lambda x: x.roll(4, 3),
        lambda x: x.roll(-4, 3),
        lambda x: x.roll(4, 2),
        lambda x: x.roll(-4, 2),
    ],
    ids=["mirrored", "tinted", "blurred", "right", "left", "down", "up"],
)
def test_the_true_enlargement_is_preferred(
    network: Lite0, spoil: Callable[[Tensor], Tensor]
) -> None:
    """On 40 photographs: `python -m benchmarks.perceptual`."""
    chelsea, coffee = (torch.from_numpy(each()) for each in (data.chelsea, data.coffee))
    for true in (crop(chelsea, 60, 110), crop(coffee, 60, 250)):
        lr = F.interpolate(true, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
        assert vgg_term(network, spoil(true), lr) > vgg_term(network, true, lr)


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(UserError, match="lite0-features has no layer conv5_4"):
        load_vgg("lite0-features", ["stem", "conv5_4"])


def test_one_layer_alone(network: Lite0) -> None:
    alone = load_vgg("lite0-features", ["stem"])
    pictures = torch.rand(1, 3, 56, 56)
    assert list(alone(pictures)) == ["stem"]
    assert torch.equal(alone(pictures)["stem"], network(pictures)["stem"])
