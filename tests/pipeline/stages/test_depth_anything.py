"""Depth Anything V2 against transformers itself, and folders that are something else."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from lasr.weights.locate import WeightsError
from pipeline.stages.depth import DepthModel
from tests.support.upstream import any_content, expect, save_depth_anything
from tests.support.weights import load_depth

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depth-anything")
    save_depth_anything(folder)
    return folder


def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = ((60, 90), (60, 90), (90, 60), (100, 100))
    return [cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), s[::-1]) for s in sizes]


def test_depth_anything_predicts_nearness_and_is_inverted(depth_anything: Path) -> None:
    """Upstream: larger = nearer. Ours: larger = farther, from the very same numbers."""
    ours = load_depth(str(depth_anything), CPU)
    model = AutoModelForDepthEstimation.from_pretrained(depth_anything).eval()
    processor = AutoImageProcessor.from_pretrained(depth_anything)
    for photo in photos():
        with torch.no_grad():
            output = model(**processor(images=photo, return_tensors="pt"))
        native = output.predicted_depth[0].numpy()
        (distance,) = ours.predict_some([ours.prepare(photo)])
        assert distance.dtype == np.float32
        assert distance.flat[native.argmax()] == 0 and distance.flat[native.argmin()] == 1
        # And at the photograph's size, as transformers enlarges it; kept in 16 bit between.
        size = [photo.shape[:2]]
        post = processor.post_process_depth_estimation(output, target_sizes=size)[0]
        stretched = (post["predicted_depth"].numpy() - native.min()) / np.ptp(native)
        enlarged = ours.distance(photo)
        assert enlarged.shape == photo.shape[:2] and enlarged.dtype == np.float32
        np.testing.assert_allclose(enlarged, (1 - stretched).clip(0, 1), atol=3e-5)


def test_a_map_does_not_depend_on_who_shares_the_call(depth_anything: Path) -> None:
    """To the last bit, so that rows do not depend on where a build was stopped."""
    one = load_depth(str(depth_anything), CPU)
    four = DepthModel(one.identity, one.prepare, one.predict, batch=4, is_network=True)
    prepared = [one.prepare(photo) for photo in (*photos()[:2], photos()[0][::-1].copy())]
    together = four.predict_some(prepared)
    for i, expected in enumerate(together):
        np.testing.assert_array_equal(four.predict_some([prepared[i]])[0], expected)
        np.testing.assert_allclose(one.predict_some([prepared[i]])[0], expected, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3)


def test_identity_tells_weights_apart(depth_anything: Path, tmp_path: Path) -> None:
    other = tmp_path / depth_anything.name
    other.mkdir()
    for file in depth_anything.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    same = load_depth(str(other), CPU).identity
    assert same == load_depth(str(depth_anything), CPU).identity
    config = other / "preprocessor_config.json"
    config.write_text(config.read_text() + "\n")
    assert load_depth(str(other), CPU).identity != same


# In proportion as Small, Base and Large (Yang et al. 2024): about a twelfth of their width.
SIZES = {
    "small": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4},
    "base": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4},
    "large": {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 8},
}


@pytest.mark.parametrize("size", SIZES)
def test_every_size_answers_as_in_transformers(tmp_path: Path, size: str) -> None:
    save_depth_anything(tmp_path, **SIZES[size])
    ours = load_depth(str(tmp_path), CPU)
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    photo = photos()[0]
    with torch.no_grad():
        native = model(**processor(images=photo, return_tensors="pt")).predicted_depth[0].numpy()
    (distance,) = ours.predict_some([ours.prepare(photo)])
    np.testing.assert_allclose(distance, 1 - (native - native.min()) / np.ptp(native), atol=1e-6)


def edited(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_folders_that_would_swap_near_and_far_are_refused(tmp_path: Path) -> None:
    """Metric variants and other estimators load as well, and their depth grows with distance."""
    save_depth_anything(tmp_path)
    with pytest.raises(WeightsError, match="without Metric in its name"):
        load_depth(str(edited(tmp_path, depth_estimation_type="metric", max_depth=20)), CPU)
    with pytest.raises(WeightsError, match="is zoedepth over dinov2, not Depth Anything V2"):
        load_depth(str(edited(tmp_path, model_type="zoedepth")), CPU)


def test_weights_of_another_size_than_their_config_are_refused(tmp_path: Path) -> None:
    """Large's weights with Small's config, and the other way about; transformers may only warn."""
    for size in SIZES:
        save_depth_anything(tmp_path / size, **SIZES[size])
    for one, other in (("small", "large"), ("large", "small"), ("base", "small")):
        folder = tmp_path / f"{one} of {other}"
        shutil.copytree(tmp_path / one, folder)
        shutil.copy(tmp_path / other / "model.safetensors", folder)
        with pytest.raises(WeightsError, match=f"^{folder}: ") as refusal:
            load_depth(str(folder), CPU)
        assert "\n" not in str(refusal.value) and ";" in str(refusal.value)


def test_tensors_that_are_missing_are_not_made_up(depth_anything: Path, tmp_path: Path) -> None:
    """transformers warns, and goes on with random numbers in their place."""
    folder = tmp_path / "partial"
    shutil.copytree(depth_anything, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.conv3.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing keys: head\.conv3\.bias"):
        load_depth(str(folder), CPU)


def test_a_name_stands_for_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large is not free for commercial use: under Small's name it is refused."""
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path))
    any_content(monkeypatch, "depth-anything-v2-small")
    save_depth_anything(tmp_path / "depth-anything-v2-small", **SIZES["large"])
    with pytest.raises(WeightsError, match="its hidden_size is 96, not 384"):
        load_depth("depth-anything-v2-small", CPU)
    expect(monkeypatch, "depth-anything-v2-small", hidden_size=96)
    load_depth("depth-anything-v2-small", CPU)
