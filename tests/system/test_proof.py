"""The proof and the world of known truth: what they measure, and that they run as typed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from torchvision.models import squeezenet1_1

from benchmarks import towers
from benchmarks.proof import __main__ as proof
from benchmarks.proof import scores, squeeze
from benchmarks.world import scenes
from lasr.pictures.read import read_rgb

pytestmark = pytest.mark.slow


def upstream() -> torch.nn.Module:
    """torchvision's SqueezeNet 1.1 with the weights of ours."""
    network = squeezenet1_1(num_classes=1000)
    layers = dict(zip(("conv1", "fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8",
                       "fire9"), (0, 3, 4, 6, 7, 9, 10, 11, 12), strict=True))  # fmt: skip
    tensors = {}
    for name, value in load_file(squeeze.WEIGHTS).items():
        layer, *inner, kind = name.replace("/", ".").replace("squeeze1x1", "squeeze").split(".")
        tensors[".".join(["features", str(layers[layer]), *inner, kind])] = value.float()
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected and all(name.startswith("classifier") for name in missing)
    return network.eval()


def test_the_perceptual_distance_has_the_features_of_torchvisions_network(
    photographs: Path,
) -> None:
    picture = read_rgb(photographs / "chelsea.png")[None, :, :200, :240]
    means = torch.tensor(squeeze.MEAN).view(1, 3, 1, 1)
    x, found = picture.flip(1) * 255 - means, []
    with torch.no_grad():
        for index, layer in enumerate(upstream().features):
            x = layer(x)
            if index in (1, 4, 7, 9, 10, 11, 12):
                found.append(x)
    ours = squeeze.features(picture)
    for expected, features in zip(found, ours, strict=True):
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-2)
    assert float(squeeze.distance(picture, picture)) == 0
    moved = picture.roll(3, 3)
    by_hand = sum(
        (1 - F.cosine_similarity(a, b)).mul(2).mean()  # |a - b|^2 of vectors of length 1
        for a, b in zip(squeeze.features(moved), ours, strict=True)
    )
    assert float(squeeze.distance(moved, picture)) == pytest.approx(float(by_hand), rel=1e-3)


def test_more_blur_is_farther(photographs: Path) -> None:
    with Image.open(photographs / "coffee.png") as image:
        pictures = [image.filter(ImageFilter.GaussianBlur(sigma)) for sigma in (0, 1, 2, 4)]
    tensors = [
        torch.from_numpy(np.array(p)[:256, :256]).permute(2, 0, 1)[None] / 255 for p in pictures
    ]
    distances = [float(squeeze.distance(t, tensors[0])) for t in tensors]
    assert distances[0] == 0 and distances == sorted(distances) and distances[1] > 0.1


def test_consistency_and_colour_are_those_of_planted_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lr = rng.integers(60, 200, (16, 16, 3), np.uint8)
    sr = lr.repeat(4, axis=0).repeat(4, axis=1)
    for folder, made in (("lr", lr), ("same", sr), ("shifted", sr + 10)):
        (tmp_path / folder).mkdir()
        Image.fromarray(made.astype(np.uint8)).save(tmp_path / folder / "a.png")
    same, shifted = (
        scores.measured(tmp_path / name, tmp_path / "lr", None) for name in ("same", "shifted")
    )
    assert same["colour shift"] == pytest.approx(0, abs=1e-6)
    assert shifted["colour shift"] == pytest.approx(10 / 255, rel=1e-3)
    # Shrinking is linear, so the shift alone is 10 of 255 everywhere.
    error, both = (10 ** (-x["consistency"] / 10) for x in (same, shifted))
    assert both > error and math.sqrt(both) < math.sqrt(error) + 10 / 255 + 1e-3


def test_a_table_has_mean_and_deviation_over_seeds() -> None:
    found = {"start": {"niqe": 5.0}, "ours #0": {"niqe": 1.0}, "ours #1": {"niqe": 3.0}}
    lines = scores.table(found, ["niqe", "psnr"]).splitlines()
    assert lines[0] == "| method | niqe ↓ | psnr ↑ |"
    assert lines[2:] == ["| start | 5.000 |  |", "| ours (2 seeds) | 2.000 ± 1.414 |  |"]


def test_the_far_surface_of_a_scene_is_its_truth_seen_from_afar() -> None:
    size = scenes.SOURCE * 3 // 4, scenes.SOURCE
    smooth = np.linspace(40, 200, size[0] * size[1]).reshape(size).astype(np.uint8)
    scene = scenes.render(np.dstack([smooth] * 3), np.random.default_rng(0))
    height, width = scene.strip.shape[:2]
    assert scene.truth.shape[:2] == (4 * height, 4 * width)
    seen = scene.truth.reshape(height, 4, width, 4, 3).mean(axis=(1, 3))
    error = scene.strip.astype(float) - seen
    assert abs(error.mean()) < 0.5 and 2 < error.std() < 6  # the sensor's noise: 4 at this depth
    assert scene.distance[0].min() > scene.distance[-1].max()


def test_the_proof_runs_as_typed(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(proof, "QUICK", 2)
    argv = [
        *("--photographs", f"{photographs}/china.jpg", f"{photographs}/flower.jpg"),
        *("--unseen", f"{photographs}/rocket.jpg", "--profile", "test", "--device", "cpu"),
        *("--out", str(tmp_path / "proof"), "--batch-size", "2", "--quick"),
    ]
    assert proof.main([*argv, "--only", "prepare"]) == 0
    for patch in sorted((tmp_path / "proof/test").iterdir())[2:]:  # Real-ESRGAN takes a second each
        patch.unlink()
    assert proof.main([*argv, "--only", "train", "score"]) == 0
    text = (tmp_path / "proof/tables.md").read_text()
    assert text.strip() in capsys.readouterr().out
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[4:]]
    assert rows == ["bicubic", "start", "Real-ESRGAN", "LA-SR"]
    judged = (tmp_path / "proof/scores").glob("*.json")
    before = {path: path.stat().st_mtime_ns for path in judged}
    assert len(before) == 4  # each method by itself, as soon as it is trained
    assert proof.main([*argv, "--only", "train", "score"]) == 0  # trained and scored already
    assert {path: path.stat().st_mtime_ns for path in before} == before
    capsys.readouterr()
    manifests = [f"{tmp_path}/proof/{name}/patches.parquet" for name in ("depth", "unseen")]
    asked = ["--manifest", manifests[0], "--unseen", manifests[1], "--towers", "tiny-clip"]
    assert towers.main([*asked, "--steps", "1", "--batch-size", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["paper", "equal-size"]
    assert proof.main([*argv[3:], "--only", "prepare"]) == 1
    assert "give --photographs and --unseen" in capsys.readouterr().err
