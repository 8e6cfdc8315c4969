"""Metrics: conventions against float64, weights, functions of one's own, and no connection."""

import math
import socket
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from lasr.errors import UserError
from lasr.pictures.read import read_rgb
from tests.support import matlab
from trainer.evaluate import metrics
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


@pytest.mark.parametrize("name", [n for n in metrics.METRICS if n not in ("psnr", "ssim")])
def test_missing_weights_are_named_with_the_command_and_nothing_is_fetched(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class NoSocket(socket.socket):
        def connect(self, address: object) -> None:
            asked.append(address)
            raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a))
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
    (home / "pyiqa").mkdir(parents=True)
    vectors = torch.rand(774, 1), torch.rand(774, 36)
    torch.save(vectors, home / "pyiqa" / "brisque_svm_weights.pth")
    metric = load_metric("brisque", CPU)
    assert not metric.needs_reference and np.isfinite(metric.score(pair[0], None))
    with pytest.raises(UserError, match="brisque failed"):
        metric.score(torch.rand(3, 4, 4), None)
    torch.save((vectors[0] * torch.nan, vectors[1]), home / "pyiqa" / "brisque_svm_weights.pth")
    with pytest.raises(UserError, match="brisque returned nan"):
        load_metric("brisque", CPU).score(pair[0], None)


class Touch:
    """Unpickled, it makes a file: what a poisoned weights file could do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_are_refused(home: Path, tmp_path: Path) -> None:
    (home / "pyiqa").mkdir(parents=True)
    trace = tmp_path / "was here"
    torch.save((Touch(trace), torch.rand(774, 36)), home / "pyiqa" / "brisque_svm_weights.pth")
    with pytest.raises(MetricUnavailable, match="brisque: cannot be loaded"):
        load_metric("brisque", CPU)
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
    assert metrics.main(["fetch", "psnr", "musiq"]) == 1
    error = capsys.readouterr().err
    assert "could not fetch musiq (OSError: no route); check the connection" in error


def test_without_pyiqa_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UserError, match=r"needs pyiqa, .*run `pip install 'la-sr\[evaluate\]'`"):
        load_metric("psnr", CPU)
