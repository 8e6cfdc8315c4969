"""Any network by name or file: our RRDB, and whatever spandrel reads, as spandrel computes it."""

import sys
from pathlib import Path

import pytest
import spandrel
import torch
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SwinIR import SwinIR
from torch import nn

from lasr.weights.locate import WeightsError
from tests.support.upstream import any_content, expect
from tests.support.weights import load_model, load_sr
from trainer.models.rrdb import RRDB
from trainer.models.save import save_network


def saved(network: nn.Module, path: Path) -> str:
    torch.save({"params": network.state_dict()}, path)
    return str(path)


def compact(scale: int) -> nn.Module:
    torch.manual_seed(0)
    return Compact(num_feat=8, num_conv=2, upscale=scale)


def test_our_own_comes_first(tmp_path: Path) -> None:
    assert isinstance(load_sr("tiny-rrdb"), RRDB)
    assert isinstance(load_sr(str(save_network(RRDB(8, 1, 32), tmp_path)[0])), RRDB)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_other_networks_answer_as_in_spandrel_and_are_not_clamped(
    tmp_path: Path, scale: int
) -> None:
    path = saved(compact(scale), tmp_path / "net.pth")
    model = load_model(path)
    theirs = spandrel.ModelLoader().load_from_file(path)
    x = 4 * torch.rand(1, 3, 9, 14) - 2
    with torch.no_grad():
        answer = model.network(x)
        assert model.scale == scale and answer.shape[-2:] == (9 * scale, 14 * scale)
        torch.testing.assert_close(answer, theirs.model(x))
        assert answer.max() > 1 and answer.min() < 0
    if scale == 4:
        network = load_sr(path)
        network(x).mean().backward()
        assert all(p.grad is not None for p in network.parameters())
    else:
        with pytest.raises(WeightsError, match=f"enlarges x{scale}, training takes x4"):
            load_sr(path)


def test_sizes_that_a_network_does_not_take_are_padded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    swin = SwinIR(
        img_size=16, window_size=8, depths=[2], embed_dim=12, num_heads=[2], mlp_ratio=2,
        upscale=4, upsampler="pixelshuffledirect", resi_connection="1conv",
    )  # fmt: skip
    torch.save(swin.state_dict(), path := tmp_path / "swin.pth")
    model = load_model(str(path))
    assert model.minimum > 1 or model.multiple_of > 1
    x = torch.rand(1, 3, 7, 19)
    with torch.no_grad():
        answer = model.fitted().eval()(x)
    theirs = spandrel.ModelLoader().load_from_file(path)
    assert answer.shape == (1, 3, 28, 76)
    inner = theirs(torch.rand(1, 3, 16, 24)).shape
    assert inner == (1, 3, 64, 96)


def test_an_rrdb_of_another_scale_enlarges_and_does_not_train(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x2 = ESRGAN(in_nc=12, out_nc=3, num_filters=8, num_blocks=1, scale=4, shuffle_factor=2)
    torch.save(x2.state_dict(), path := tmp_path / "x2.pth")
    assert load_model(str(path)).scale == 2
    with pytest.raises(WeightsError, match="enlarges x2, training takes x4"):
        load_sr(str(path))


def test_a_name_is_kept_to_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The anime network of six blocks, or one of x2, copied to where x4plus belongs."""
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path))
    any_content(monkeypatch, "realesrgan-x4plus")
    (folder := tmp_path / "realesrgan-x4plus").mkdir()
    file = folder / "RealESRGAN_x4plus.pth"
    network = RRDB(64, 6, 32)
    torch.save({"params_ema": network.state_dict()}, file)
    with pytest.raises(WeightsError, match="is not realesrgan-x4plus: its blocks is 6, not 23"):
        load_model("realesrgan-x4plus")
    assert load_model(str(file)).network.blocks == 6  # by path it is what it is
    expect(monkeypatch, "realesrgan-x4plus", features=64, blocks=6, growth=32)
    load_model("realesrgan-x4plus")
    saved(ESRGAN(in_nc=12, out_nc=3, num_filters=8, num_blocks=1, scale=4, shuffle_factor=2), file)
    with pytest.raises(WeightsError, match="is an RRDB x2, not x4"):
        load_model("realesrgan-x4plus")


def test_unknown_networks_and_a_missing_spandrel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, path := tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="is not an RRDB network"):
        load_model(str(path))
    known = saved(compact(4), tmp_path / "net.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(WeightsError, match=r"pip install 'la-sr\[spandrel\]'") as refusal:
        load_model(known)
    assert "\n" not in str(refusal.value)
