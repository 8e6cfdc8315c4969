"""The SR network against spandrel's, its weight files in every layout, and the untrained start."""

import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import spandrel
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from lasr.weights.locate import WeightsError
from tests.support.weights import load_rrdb
from trainer.models.rrdb import RRDB, untrained_rrdb
from trainer.models.save import save_network

State = dict[str, Tensor]


def random_rrdb(features: int = 8, blocks: int = 2, growth: int = 4) -> RRDB:
    torch.manual_seed(0)
    network = RRDB(features, blocks, growth)
    for parameter in network.parameters():  # no bias at zero: each must find its place
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def middle_layout(state: State) -> State:
    """BSRGAN's and later ESRGAN's names."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", key)
        key = key.replace("conv_body", "trunk_conv").replace("conv_hr", "HRconv")
        renamed[key.replace("conv_up", "upconv")] = tensor
    return renamed


def first_layout(state: State) -> State:
    """The first ESRGAN's names: places in nested sequences."""
    blocks = len({key.split(".")[1] for key in state if key.startswith("body.")})
    places = {
        "conv_first": "model.0",
        "conv_body": f"model.1.sub.{blocks}",
        "conv_up1": "model.3",
        "conv_up2": "model.6",
        "conv_hr": "model.8",
        "conv_last": "model.10",
    }
    renamed = {}
    for key, tensor in state.items():
        module, kind = key.rsplit(".", 1)
        place = re.sub(r"body\.(\d+)\.rdb(\d)\.(conv\d)", r"model.1.sub.\1.RDB\2.\3.0", module)
        renamed[f"{places.get(module, place)}.{kind}"] = tensor
    return renamed


LAYOUTS = {
    "bare": lambda s: s,
    "params": lambda s: {"params": s},
    "params_ema": lambda s: {"params": {"wrong": torch.zeros(1)}, "params_ema": s},
    "state_dict and more": lambda s: {"state_dict": s, "epoch": 3},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "RRDB_trunk": middle_layout,
    "model.1.sub": first_layout,
    "model.1.sub in params": lambda s: {"params": first_layout(s)},
}


def assert_same(loaded: RRDB, network: RRDB) -> None:
    assert (loaded.features, loaded.blocks, loaded.growth) == (
        network.features,
        network.blocks,
        network.growth,
    )
    for (key, got), (name, wanted) in zip(
        loaded.named_parameters(), network.named_parameters(), strict=True
    ):
        assert key == name
        assert got.dtype == torch.float32
        assert got.requires_grad
        assert torch.equal(got, wanted), key


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(("features", "blocks"), [(64, 2), (16, 1), (24, 3)])
def test_equals_spandrels_network(tmp_path: Path, features: int, blocks: int, suffix: str) -> None:
    network = random_rrdb(features, blocks, 32)  # spandrel hard-codes the growth
    paths = dict(zip(("safetensors", "pth"), save_network(network, tmp_path), strict=True))
    theirs = spandrel.ModelLoader().load_from_file(paths[suffix])
    assert theirs.scale == 4
    x = torch.rand(2, 3, 13, 18)
    with torch.no_grad():
        difference = (network(x) - theirs.model(x)).abs().max().item()
    print(f"{features} features, {blocks} blocks: max abs difference {difference:.1e}")
    assert network(x).shape == (2, 3, 52, 72)
    assert difference <= 1e-6


def test_the_full_network_has_16_7_million_parameters() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in RRDB().parameters()) == 16_697_987


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_every_layout(tmp_path: Path, layout: str) -> None:
    network = random_rrdb()
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](network.state_dict()), path)
    assert_same(load_rrdb(path), network)


@pytest.mark.parametrize("layout", ["module.", "RRDB_trunk", "model.1.sub"])
def test_reads_every_layout_as_safetensors_whatever_the_name(tmp_path: Path, layout: str) -> None:
    network = random_rrdb()
    path = tmp_path / "0f8a2c"
    safetensors.torch.save_file(LAYOUTS[layout](network.state_dict()), path)
    assert_same(load_rrdb(path), network)


def test_reads_the_format_of_old_pytorch_and_half_precision(tmp_path: Path) -> None:
    network = random_rrdb().half()
    torch.save(
        network.state_dict(), path := tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    assert_same(load_rrdb(path), network.float())


def test_saved_files_come_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    network = random_rrdb().to(memory_format=torch.channels_last)
    paths = save_network(network, tmp_path / "new" / "run", "best")
    assert sorted(os.listdir(tmp_path / "new" / "run")) == ["best.pth", "best.safetensors"]
    for path in paths:
        assert_same(load_rrdb(path), network)
    raw = torch.load(paths[1], weights_only=True)
    assert list(raw) == ["params_ema", "la-sr"]  # the mark, which other programs pass over
    assert list(raw["params_ema"]) == list(network.state_dict())


def test_a_save_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_rrdb()
    save_network(network, tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="space"):
        save_network(RRDB(4, 1, 4), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model.pth", "model.safetensors"]
    assert_same(load_rrdb(tmp_path / "model.safetensors"), network)


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    path, _ = save_network(random_rrdb(), tmp_path)
    before = torch.get_rng_state()
    load_rrdb(path)
    untrained_rrdb(4, 1, 4, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def unshuffled(channels: int) -> State:
    state = random_rrdb().state_dict()
    return {**state, "conv_first.weight": torch.zeros(8, channels, 3, 3)}


def first_layout_of_scale(doublings: int) -> State:
    state = first_layout(random_rrdb().state_dict())
    kept = {k: v for k, v in state.items() if not re.match(r"model\.(3|6|8|10)\.", k)}
    for place in [*range(3, 3 * doublings + 1, 3), 3 * doublings + 2, 3 * doublings + 4]:
        rows = 3 if place == 3 * doublings + 4 else 8
        kept |= {f"model.{place}.weight": torch.zeros(rows, 8, 3, 3)}
        kept |= {f"model.{place}.bias": torch.zeros(rows)}
    return kept


def without(state: State, *prefixes: str) -> State:
    return {k: v for k, v in state.items() if not k.startswith(prefixes)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (unshuffled(12), "is an RRDB x2, not x4"),
        (unshuffled(48), "is an RRDB x1, not x4"),
        (without(random_rrdb().state_dict(), "conv_up2"), "is an RRDB x2, not x4"),
        (first_layout_of_scale(0), "is an RRDB x1, not x4"),
        (first_layout_of_scale(1), "is an RRDB x2, not x4"),
        (first_layout_of_scale(3), "is an RRDB x8, not x4"),
        (unshuffled(4), r"conv_first.weight is \(8, 4, 3, 3\), not \(8, 3, 3, 3\)"),
        (without(random_rrdb().state_dict(), "body.1.rdb2.conv3"), "body.1.rdb2.conv3.weight is m"),
        (
            {**random_rrdb().state_dict(), "body.0.rdb1.conv1x1.weight": torch.zeros(4, 8, 1, 1)},
            "body.0.rdb1.conv1x1.weight is unknown",  # ESRGAN+
        ),
        (without(random_rrdb().state_dict(), "body.0"), "is not an RRDB"),
        ({"features.0.weight": torch.zeros(8, 3, 3, 3)}, "is not an RRDB"),
        (
            {"conv_first.weight": torch.zeros(1), "body.0.rdb1.conv1.weight": torch.zeros(1)},
            "not an",
        ),
        ({"epoch": 3}, "holds no named tensors"),
        (torch.zeros(3), "holds no named tensors"),
        ({}, "holds no named tensors"),
    ],
)
def test_refuses_other_networks_in_one_line(tmp_path: Path, state: State, message: str) -> None:
    torch.save(state, path := tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message) as refusal:
        load_rrdb(path)
    line = str(refusal.value)
    assert line.startswith(f"{path}: ")
    assert ";" in line
    assert "\n" not in line


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_refuses_truncated_files(tmp_path: Path, index: int, part: float) -> None:
    path = save_network(random_rrdb(), tmp_path)[index]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(WeightsError, match=r"cannot be read as weights: it is (damaged|empty)"):
        load_rrdb(path)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_rrdb(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="no such file"):
        load_rrdb(tmp_path)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        RRDB(64, 0, 32)
    with pytest.raises(ValueError, match="4 or more"):
        untrained_rrdb(3)


# --- The untrained start


def photograph() -> Tensor:
    picture = torch.from_numpy(data.astronaut()[60:108, 180:228].copy())
    return picture.permute(2, 0, 1)[None] / 255


def inner(x: Tensor) -> Tensor:
    return x[..., 4:-4, 4:-4]


@pytest.mark.parametrize(("features", "blocks", "growth"), [(16, 2, 8), (64, 1, 32), (64, 23, 32)])
def test_start_interpolates(features: int, blocks: int, growth: int) -> None:
    x = photograph()[..., :32, :32] if blocks == 23 else photograph()
    with torch.no_grad():
        y = untrained_rrdb(features, blocks, growth)(x)
    twice = x
    for _ in range(2):
        twice = F.interpolate(twice, scale_factor=2, mode="bilinear")
    assert inner(y - twice).abs().max() < 0.03
    assert inner(y - twice).abs().mean() < 0.01
    for mode in ("bilinear", "bicubic"):
        assert inner(y - F.interpolate(x, scale_factor=4, mode=mode)).abs().mean() < 0.02
    # The border meets grey, not black
    white = untrained_rrdb(features, blocks, growth)(torch.ones(1, 3, 8, 8))
    assert white.min() > 0.6


def test_every_weight_of_the_start_gets_a_gradient_and_training_improves_it() -> None:
    network, x = untrained_rrdb(16, 2, 8), photograph()[..., :24, :24]
    target = F.interpolate(x, scale_factor=4, mode="bicubic")
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-5)
    losses = []
    for step in range(12):
        loss = F.l1_loss(network(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for key, parameter in network.named_parameters():
                assert parameter.grad is not None
                assert parameter.grad.isfinite().all(), key
                assert (parameter.grad != 0).float().mean() > 0.9, key
        optimizer.step()
    assert losses[-1] < losses[0]


def test_start_depends_on_the_seed_alone() -> None:
    x = photograph()[..., :8, :8]
    a, b, c = (untrained_rrdb(8, 1, 4, seed)(x) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
