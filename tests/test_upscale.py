"""Pictures out: tiles without a trace, and spandrel's own network as the judge."""

from pathlib import Path

import numpy as np
import pytest
import spandrel
import torch
from PIL import Image

from trainer.interpolation import interpolation_start
from trainer.network import load_sr
from trainer.pictures import bicubic
from trainer.rrdb import RRDB, save_rrdb
from trainer.upscale import main, read_picture, upscale


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rrdb(interpolation_start(16, 2, 32), tmp_path_factory.mktemp("sr"))[0]


def test_output_equals_spandrels_and_tiles_leave_no_seam(weights: Path, photographs: Path) -> None:
    network = spandrel.ModelLoader().load_from_file(weights).model.eval()
    picture = read_picture(photographs / "china.jpg")[:, 150:280, 200:371]  # 130 x 171
    with torch.no_grad():
        expected = network(picture[None])[0].clamp(0, 1)
    ours = load_sr(str(weights))
    torch.testing.assert_close(upscale(ours, picture, 1024), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(upscale(ours, picture, 48), expected, atol=1e-5, rtol=0)


def test_tiles_keep_the_context_that_a_network_looks_at(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network whose body speaks loudly looks far around; its tiles must not show."""
    torch.manual_seed(0)
    network = RRDB(16, 2, 16)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("body") and parameter.ndim == 4:
                parameter.mul_(8)
    picture = read_picture(photographs / "china.jpg")[:, 150:250, 200:320]
    whole = upscale(network, picture, 1024)
    seams = {}
    for overlap in (32, 2):
        monkeypatch.setattr("trainer.upscale.OVERLAP", overlap)
        seams[overlap] = (upscale(network, picture, 48) - whole).abs().max().item()
    assert seams[32] < 1 / 512 and seams[2] > 10 * seams[32]


def test_the_command_enlarges_files_and_folders(
    weights: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    small = Image.open(photographs / "coffee.png").resize((40, 30))
    small.save(tmp_path / "in" / "small one.png")
    small.convert("L").save(tmp_path / "grau.jpg")
    out = tmp_path / "out"
    argv = [
        str(tmp_path / "in"),
        str(tmp_path / "grau.jpg"),
        "--weights",
        str(weights),
        "--out",
        str(out),
    ]
    assert main(argv) == 0
    assert "enlarged: 2 of 2" in capsys.readouterr().out
    enlarged = Image.open(out / "small one.png")
    assert enlarged.size == (160, 120) and Image.open(out / "grau.png").size == (160, 120)
    smooth = bicubic(read_picture(tmp_path / "in" / "small one.png")[None], 4)[0]
    inner = (
        np.asarray(enlarged)[16:-16, 16:-16] / 255 - smooth.permute(1, 2, 0).numpy()[16:-16, 16:-16]
    )
    assert np.abs(inner).mean() < 0.03  # an untrained start interpolates
    assert main([*argv[:1], "--weights", str(weights), "--out", str(out), "--passes", "2"]) == 0
    assert Image.open(out / "small one.png").size == (640, 480)


def test_mistakes_get_one_line_and_stop_no_other_picture(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20), "green").save(tmp_path / "fine.png")
    (tmp_path / "broken.png").write_bytes(b"no")
    out = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main([str(tmp_path), *out]) == 1
    text = capsys.readouterr()
    assert "broken.png: not a readable picture" in text.err and "1 of 2" in text.out
    assert (tmp_path / "out" / "fine.png").exists()
    assert main([str(tmp_path / "missing.png"), *out]) == 1
    assert main([str(tmp_path / "fine.png"), "--weights", "nonsense", "--out", "x"]) == 1
    assert "known sr weights; known: tiny-rrdb" in capsys.readouterr().err
    own = ["--weights", str(weights), "--out", str(tmp_path)]
    before = (tmp_path / "fine.png").read_bytes()
    assert main([str(tmp_path / "fine.png"), *own]) == 1
    assert "would overwrite it" in capsys.readouterr().err
    assert (tmp_path / "fine.png").read_bytes() == before
