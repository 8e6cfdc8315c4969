"""VGG19 against torchvision's, and the modified VGG term of section 3.5."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from skimage import data
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from lasr.weights.locate import WeightsError
from tests.support.weights import load_vgg
from trainer.models.vgg import CONV5_4, TAPS, VGG, WIDTHS, untrained_vgg, vgg_term

SMALL = [width if width == "M" else width // 8 for width in cfgs["E"]]


def photograph(side: int) -> Tensor:
    picture = torch.from_numpy(data.astronaut()[:side, :side].copy())
    return picture.permute(2, 0, 1)[None] / 255


def normalised(x: Tensor) -> Tensor:
    weights = torchvision.models.VGG19_Weights.IMAGENET1K_V1.transforms()
    return torchvision.transforms.functional.normalize(x, weights.mean, weights.std)


def torchvisions(config: list[int | str]) -> nn.Sequential:
    """torchvision's layers with random weights, none of which is zero."""
    torch.manual_seed(0)
    layers = make_layers(config)
    for parameter in layers.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.normal_(parameter, std=0.1)
    return layers


def published(layers: nn.Module) -> dict[str, Tensor]:
    """A state_dict as torchvision publishes it."""
    features = {f"features.{key}": tensor for key, tensor in layers.state_dict().items()}
    return {
        **features,
        "classifier.0.weight": torch.zeros(2, 2),
        "classifier.0.bias": torch.ones(2),
    }


def each_layer(layers: nn.Sequential, x: Tensor) -> list[Tensor]:
    outputs = []
    for layer in layers:
        x = layer(x.clone())  # torchvision's ReLUs write into their input
        outputs.append(x.clone())
    return outputs


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_equals_torchvisions_features(tmp_path: Path, suffix: str) -> None:
    theirs, path, x = torchvisions(SMALL), tmp_path / f"vgg.{suffix}", photograph(64)
    save = torch.save if suffix == "pth" else safetensors.torch.save_file
    save(published(theirs), path)
    vgg = load_vgg(path)
    features = vgg(x)["conv5_4"]
    expected = theirs[:35](normalised(x))
    assert (features - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert features.shape == (1, 64, 4, 4)
    assert features.min() < 0  # before its ReLU
    assert len(vgg.features) == 35


def test_equals_torchvisions_vgg19_at_its_real_width(tmp_path: Path) -> None:
    with torch.device("meta"):  # its classifier of half a gigabyte is not needed
        theirs = torchvision.models.vgg19().features.to_empty(device="cpu")
    for parameter in theirs.parameters():
        nn.init.normal_(
            parameter, std=0.05 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        )
    torch.save(published(theirs), path := tmp_path / "vgg19.pth")
    x = photograph(32)
    with torch.no_grad():
        got, expected = load_vgg(path)(x)["conv5_4"], theirs[:35](normalised(x))
    assert got.shape == (1, 512, 2, 2)
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert sum(p.numel() for p in VGG().parameters()) == sum(p.numel() for p in theirs.parameters())


def test_taps_next_to_each_other_do_not_corrupt_each_other(tmp_path: Path) -> None:
    theirs, x = torchvisions(SMALL), photograph(32)
    torch.save(published(theirs), path := tmp_path / "vgg.pth")
    found = load_vgg(path, list(TAPS))(x)
    assert list(found) == list(TAPS)
    assert len(TAPS) == 32
    outputs = each_layer(theirs, normalised(x))
    for name, index in TAPS.items():
        torch.testing.assert_close(found[name], outputs[index], msg=name)
        assert (found[name].min() < 0) == name.startswith("conv")


def test_names_are_those_of_the_vgg_paper() -> None:
    # SRGAN's and ESRGAN's layers in torchvision's numbering
    wanted = {
        "conv1_2": 2,
        "conv2_2": 7,
        "conv3_4": 16,
        "conv4_4": 25,
        "conv5_4": 34,
        "relu5_4": 35,
    }
    assert {name: TAPS[name] for name in wanted} == wanted
    assert [WIDTHS[0], *WIDTHS] == [64, *(w for w in cfgs["E"] if w != "M")]


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(56, 56, 4), (16, 16, 4), (17, 31, 4), (47, 18, 4), (24, 40, 2), (33, 20, 3), (32, 32, 1)],
)
def test_pooled_features_meet_at_any_size(height: int, width: int, scale: int) -> None:
    vgg = untrained_vgg(0, ["conv5_4", "relu3_1"])
    sr = torch.rand(2, 3, scale * height, scale * width)
    lr = torch.rand(2, 3, height, width)
    pooled = {k: F.avg_pool2d(v, scale) for k, v in vgg(sr).items()}
    targets = vgg(lr)
    for name in targets:
        assert pooled[name].shape == targets[name].shape
    differences = {k: (pooled[k] - targets[k]).numpy() for k in targets}
    l1 = np.mean([np.abs(d).mean() for d in differences.values()])
    l2 = np.mean([(d**2).mean() for d in differences.values()])
    assert vgg_term(vgg, sr, lr).item() == pytest.approx(l1, rel=1e-5)
    assert vgg_term(vgg, sr, lr, "l2").item() == pytest.approx(l2, rel=1e-5)


def test_pooling_is_the_mean_over_blocks_of_the_scale() -> None:
    vgg, sr, lr = untrained_vgg(0, CONV5_4), torch.rand(1, 3, 224, 224), torch.rand(1, 3, 56, 56)
    fine, coarse = vgg(sr)["conv5_4"].numpy(), vgg(lr)["conv5_4"].numpy()
    assert fine.shape[-2:] == (14, 14)
    assert coarse.shape[-2:] == (3, 3)
    total = 0.0
    for i in range(3):
        for j in range(3):
            block = fine[0, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean(axis=(1, 2))
            total += np.abs(block - coarse[0, :, i, j]).sum()
    assert vgg_term(vgg, sr, lr).item() == pytest.approx(total / coarse.size, rel=1e-5)


def test_the_gradient_reaches_the_sr_picture_only() -> None:
    vgg = untrained_vgg(0, CONV5_4)
    sr = torch.rand(1, 3, 64, 64, requires_grad=True)
    lr = torch.rand(1, 3, 16, 16, requires_grad=True)
    vgg_term(vgg, sr, lr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() > 0
    assert sr.grad.isfinite().all()
    assert lr.grad is None
    assert not vgg.training
    for parameter in vgg.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None


def test_gradient_is_right() -> None:
    vgg = untrained_vgg(0, ["relu2_2", "conv2_1"]).double()
    sr = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    lr = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: vgg_term(vgg, x, lr), sr)


def test_pooling_and_distance_stay_float32_under_autocast() -> None:
    vgg, sr, lr = untrained_vgg(0, CONV5_4), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        fine, coarse = vgg(sr)["conv5_4"], vgg(lr)["conv5_4"]
        term = vgg_term(vgg, sr, lr)
    assert fine.dtype == torch.bfloat16
    assert term.dtype == torch.float32
    pooled = fine.double().numpy().mean(axis=(2, 3), keepdims=True)  # 4x4 of them
    expected = np.abs(pooled - coarse.double().numpy()).mean()
    assert term.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_untrained_features_hold_layout_and_colour(seed: int) -> None:
    vgg, lr = untrained_vgg(seed), photograph(56)
    enlarged = F.interpolate(lr, scale_factor=4, mode="bicubic")
    own = vgg_term(vgg, enlarged, lr)
    for mirrored in (enlarged.flip(-1), enlarged.flip(-2)):
        assert own < 0.5 * vgg_term(vgg, mirrored, lr)
    red = torch.tensor([0.1, 0, 0]).view(1, 3, 1, 1)
    for recoloured in (enlarged.flip(1), enlarged + red, enlarged + 0.1):
        assert own < vgg_term(vgg, recoloured, lr)
    assert vgg_term(vgg, lr, lr) == 0


def test_untrained_vgg_depends_on_the_seed_alone_and_survives_a_file(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    a, b, c = (untrained_vgg(seed, ["relu5_4"]) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    x = photograph(16)
    assert torch.equal(a(x)["relu5_4"], b(x)["relu5_4"])
    assert not torch.equal(a(x)["relu5_4"], c(x)["relu5_4"])
    safetensors.torch.save_file(a.state_dict(), path := tmp_path / "small.safetensors")
    assert torch.equal(load_vgg(path)(x)["conv5_4"].relu(), a(x)["relu5_4"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            published(make_layers([w if w == "M" else 4 for w in cfgs["D"]])),
            r"features\.16\.\w+ is m",
        ),
        (
            published(make_layers([w if w == "M" else 4 for w in cfgs["E"]], batch_norm=True)),
            r"features\.1\.\w+ is not a part of it",
        ),
        ({"conv_first.weight": torch.zeros(8, 3, 3, 3)}, r"features\.0\.\w+ is missing"),
        (
            {**published(torchvisions(SMALL)), "features.34.weight": torch.zeros(64, 8, 3, 3)},
            r"features\.34\.weight is \(64, 8, 3, 3\), not \(64, 64, 3, 3\)",
        ),
    ],
)
def test_refuses_other_networks_in_one_line(
    tmp_path: Path, state: dict[str, Tensor], message: str
) -> None:
    torch.save(state, path := tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message) as refusal:
        load_vgg(path, ["conv1_2"])
    line = str(refusal.value)
    assert line.startswith(f"{path}: is not a VGG19: ")
    assert ";" in line
    assert "\n" not in line


def test_refuses_damaged_files(tmp_path: Path) -> None:
    torch.save(published(torchvisions(SMALL)), path := tmp_path / "vgg.pth")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="damaged"):
        load_vgg(path)


def test_refuses_bad_arguments() -> None:
    vgg, sr, lr = untrained_vgg(0, CONV5_4), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="no layer 'conv5_5'"):
        VGG(["conv5_5"])
    with pytest.raises(ValueError, match="no layers"):
        VGG([])
    with pytest.raises(ValueError, match="no distance 'l3'"):
        vgg_term(vgg, sr, lr, "l3")  # type: ignore[arg-type]
    for shape in ((1, 3, 63, 64), (2, 3, 64, 64), (1, 3, 64, 32), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match="not a whole multiple"):
            vgg_term(vgg, torch.rand(shape), lr)
    with pytest.raises(ValueError, match="15x16 pixels do not reach conv5_4; use 16 or more"):
        vgg_term(vgg, torch.rand(1, 3, 64, 60), torch.rand(1, 3, 16, 15))
