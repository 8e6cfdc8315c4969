"""The trained start within the package, `rrdb-small`: loads, enlarges better than bicubic."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from spandrel import ModelLoader

from lasr.pictures.read import read_rgb
from lasr.weights.digests import sha256
from lasr.weights.locate import PROFILES, TABLE, locate
from lasr.weights.tensors import read_tensors
from trainer.evaluate.resize import enlarge, reduce
from trainer.models.load import load_sr
from trainer.models.rrdb import RRDB
from trainer.models.save import save_network
from trainer.pretrain.validation import psnr_y


@pytest.fixture(scope="module")
def network() -> RRDB:
    network = load_sr(locate("rrdb-small", "sr")).eval()
    assert isinstance(network, RRDB)
    return network


def test_it_is_float16_on_disk_and_float32_in_memory(network: RRDB) -> None:
    located = locate(PROFILES["offline"]["sr"], "sr")
    assert located.path is not None and located.path.stat().st_size < 3e6
    assert {tensor.dtype for tensor in read_tensors(located.path).values()} == {torch.float16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    record = json.loads(located.path.with_suffix(".json").read_text())
    assert record["file"]["sha256"] == sha256(located.path)
    assert record["network"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert record["licence"] == TABLE["rrdb-small"].licence
    assert {p["used"].split(" in ")[0] for p in record["photographs"]} == {"trained on", "held out"}


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png"])  # it was not trained on them
def test_it_is_better_than_bicubic_without_a_tint_or_a_frame(
    name: str, network: RRDB, photographs: Path
) -> None:
    hr = read_rgb(photographs / name)[:, 40:232, 150:342].mul(255).round().div(255)
    lr = reduce(hr, 4).clamp(0, 1).mul(255).round().div(255).float()
    with torch.no_grad():
        sr = network(lr[None])[0]
    plain = enlarge(lr, 4)
    assert psnr_y(sr, hr) > psnr_y(plain, hr) + 0.5
    error = (sr.clamp(0, 1) - hr).double()
    assert error.mean((1, 2)).abs().max() < 1.5 / 255
    frame = np.ones(error.shape[1:], bool)
    frame[4:-4, 4:-4] = False
    ours, bicubic = (((p - hr) ** 2)[:, frame].mean() for p in (sr, plain))
    assert ours < 1.1 * bicubic


def test_spandrel_loads_it(network: RRDB, tmp_path: Path) -> None:
    _, path = save_network(network, tmp_path)
    other = ModelLoader(device="cpu").load_from_file(path).eval()
    picture = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(other(picture), network(picture).clamp(0, 1))
