"""Networks for other programs: each format is read by the program that reads it out there."""

import json
import sys
from pathlib import Path

import ncnn
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import spandrel
import torch
from torch import Tensor, nn

import lasr
from lasr.errors import UserError
from lasr.ownership import is_ours
from tests.support.weights import load_sr
from trainer.export import ExportConfig, describe, export, main
from trainer.models import export as exporting
from trainer.models import load
from trainer.models.rrdb import RRDB
from trainer.models.save import save_network

PICTURE = torch.rand(1, 3, 21, 34, generator=torch.Generator().manual_seed(1))


def saved(blocks: int, folder: Path) -> Path:
    """Growth 32, which spandrel hard-codes, and no bias at zero."""
    network = RRDB(12, blocks, 32)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return save_network(network, folder)[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks, so that one could be taken for the other."""
    return saved(2, tmp_path_factory.mktemp("sr"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block: PyTorch takes seconds to write a block as ONNX."""
    return saved(1, tmp_path_factory.mktemp("small"))


def expected(weights: Path, pictures: Tensor = PICTURE) -> Tensor:
    """Spandrel's answer: the reader of chaiNNer."""
    network = spandrel.ModelLoader().load_from_file(weights).model.eval()
    with torch.inference_mode():
        answer: Tensor = network(pictures)
    return answer


def test_onnx_runtime_answers_as_spandrel_at_any_size(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.onnx"
    assert main(["--weights", str(weights), "--out", str(out), "--licence", "CC0-1.0"]) == 0
    assert "compared with PyTorch, 2 x 27x48: largest difference" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 21, 34), (3, 3, 8, 5), (1, 3, 90, 16)):
        pictures = torch.rand(shape)
        answer = torch.from_numpy(session.run(["sr"], {"lr": pictures.numpy()})[0])
        torch.testing.assert_close(answer, expected(weights, pictures), atol=1e-5, rtol=0)
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 18
    about = {entry.key: entry.value for entry in model.metadata_props}
    identity = about.pop("source")
    assert identity.startswith("model@")
    assert about.pop("la-sr") == lasr.__version__ and is_ours(out)
    assert about == {"scale": "4", "colour": "RGB", "range": "0..1", "licence": "CC0-1.0"}
    content = out.read_bytes()
    assert b"site-packages" not in content and str(Path.cwd()).encode() not in content
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]  # nothing beside it


def test_half_precision_halves_the_file_and_keeps_float32_pictures(
    small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half.onnx"
    export(ExportConfig(weights=str(small), out=out, half=True, opset=20))
    floats = sum(parameter.numel() for parameter in load_sr(str(small)).parameters())
    assert out.stat().st_size < 0.6 * 4 * floats
    session = onnxruntime.InferenceSession(out)
    answer = session.run(None, {"lr": PICTURE.numpy()})[0]
    assert answer.dtype == np.float32
    difference = np.abs(answer - expected(small).numpy()).max()
    assert 0 < difference < 2 / 255


def run_ncnn(param: Path, picture: Tensor) -> Tensor:
    network = ncnn.Net()
    assert network.load_param(str(param)) == 0
    assert network.load_model(str(param.with_suffix(".bin"))) == 0
    array = picture.numpy()
    with network.create_extractor() as extractor:
        extractor.input("data", ncnn.Mat(array))  # the names that Upscayl's program asks for
        status, enlarged = extractor.extract("output")
        assert status == 0
        return torch.from_numpy(np.array(enlarged))


@pytest.mark.parametrize("half", [False, True])
def test_ncnn_answers_as_spandrel(weights: Path, tmp_path: Path, half: bool) -> None:
    files = export(ExportConfig(weights=str(weights), out=tmp_path / "mine-x4.param", half=half))
    assert [path.name for path in files] == ["mine-x4.param", "mine-x4.bin"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine-x4.bin", "mine-x4.param"]
    floats = sum(p.numel() for p in load_sr(str(weights)).parameters())
    assert files[1].stat().st_size < floats * (2.2 if half else 4.1)
    difference = (run_ncnn(files[0], PICTURE[0]) - expected(weights)[0]).abs().max()
    assert difference < (2e-3 if half else 1e-5)


def test_real_esrgans_script_finds_what_it_asks_for(weights: Path, tmp_path: Path) -> None:
    """Its RealESRGANer takes `params_ema` if it is there, strictly, for BasicSR's RRDBNet(…)."""
    (out,) = export(ExportConfig(weights=str(weights), out=tmp_path / "mine.pth"))
    state = torch.load(out, map_location="cpu", weights_only=True)["params_ema"]
    convs = [f"body.{b}.rdb{d}.conv{c}" for b in range(2) for d in (1, 2, 3) for c in range(1, 6)]
    ends = ["conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    assert state.keys() == {f"{n}.{kind}" for n in convs + ends for kind in ("weight", "bias")}
    torch.testing.assert_close(expected(out), expected(weights), atol=0, rtol=0)


def test_safetensors_say_what_they_are(weights: Path, tmp_path: Path) -> None:
    (out,) = export(ExportConfig(weights=str(weights), out=tmp_path / "mine.safetensors"))
    with safetensors.safe_open(out, "pt") as file:
        about = file.metadata()
    assert about["scale"] == "4" and about["licence"] == "not stated"
    assert (
        out.stat().st_mode & 0o777
        == save_network(RRDB(4, 1, 4), tmp_path)[1].stat().st_mode & 0o777
    )
    torch.testing.assert_close(expected(out), expected(weights), atol=0, rtol=0)


def test_a_run_is_exported_with_its_history(weights: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_network(load_sr(str(weights)), run)
    settings = {"manifest": "m.parquet", "new": 1}
    started = {"sr_init": "rrdb-psnr-x4@0123", "clip": "clip@4567", "vgg": "vgg19@89ab"}
    settings["weights"] = started
    (run / "config.json").write_text(json.dumps(settings))
    located, about = describe(str(run), None)
    assert located.path == run / "model.safetensors"
    assert about["started_from"] == "rrdb-psnr-x4@0123" and about["licence"] == "Apache-2.0"
    assert describe(str(run), "mine")[1]["licence"] == "mine"
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: not written yet"):
        describe(str(run), None)
    with pytest.raises(UserError, match="no readable config"):
        describe(str(tmp_path), None)


@pytest.mark.parametrize("suffix", [".onnx", ".param"])
def test_a_file_that_answers_otherwise_does_not_appear(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(exporting, "BOUND", 1e-9)
    out = tmp_path / f"mine{suffix}"
    with pytest.raises(UserError, match=r"differs from PyTorch's by .* nothing was written"):
        export(ExportConfig(weights=str(small), out=out))
    assert list(tmp_path.iterdir()) == []


class Stubborn(nn.Module):
    """Its computation depends on its input, so it cannot be exported as a graph."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures if pictures.mean() > 0.5 else pictures * 2


def test_mistakes_get_one_line(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for argv, message in [
        (["--out", "a.txt"], "unknown format; end it in one of .onnx"),
        (["--out", "my2xphoto.param"], "Upscayl would read '2x' in this name as the scale"),
        (["--out", "a.pth", "--half"], "--half: .pth files keep float32"),
    ]:
        assert main(["--weights", str(small), *argv]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(load, "load_sr", lambda name: nn.Conv2d(3, 48, 3))
    assert main(["--weights", str(small), "--out", str(tmp_path / "a.param")]) == 1
    assert "for RRDB only, this is a Conv2d" in capsys.readouterr().err
    monkeypatch.setattr(load, "load_sr", lambda name: Stubborn())
    assert main(["--weights", str(small), "--out", str(tmp_path / "a.onnx")]) == 1
    assert "PyTorch cannot write a Stubborn as ONNX (" in capsys.readouterr().err
    monkeypatch.setattr(load, "load_sr", lambda name: nn.Upsample(scale_factor=4))
    assert main(["--weights", str(small), "--out", str(tmp_path / "a.onnx"), "--opset", "99"]) == 1
    assert "--opset 99: PyTorch cannot write it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["--weights", str(small), "--out", str(tmp_path / "a.onnx")]) == 1
    assert "run `pip install 'la-sr[fast]'`" in capsys.readouterr().err
