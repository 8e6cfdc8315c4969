"""Depth adapters: the direction of each, and Depth Anything V2 against transformers itself."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation
from upstream import save_depth_anything

from pipeline.depth import colour_attenuation, load_depth, normalise
from schemas.weights import WeightsError

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
    ours = load_depth(str(depth_anything), CPU).distances(photos())
    model = AutoModelForDepthEstimation.from_pretrained(depth_anything).eval()
    processor = AutoImageProcessor.from_pretrained(depth_anything)
    for photo, distance in zip(photos(), ours, strict=True):
        with torch.no_grad():
            output = model(**processor(images=photo, return_tensors="pt"))
        size = [photo.shape[:2]]
        nearness = processor.post_process_depth_estimation(output, target_sizes=size)[0]
        upstream = nearness["predicted_depth"].numpy()
        assert distance.shape == photo.shape[:2] and distance.dtype == np.float32
        assert distance.flat[upstream.argmax()] == 0 and distance.flat[upstream.argmin()] == 1
        stretched = (upstream - upstream.min()) / (upstream.max() - upstream.min())
        np.testing.assert_allclose(distance, 1 - stretched, atol=1e-5)


def test_mixed_sizes_give_what_each_gives_alone(depth_anything: Path) -> None:
    model = load_depth(str(depth_anything), CPU)
    for photo, distance in zip(photos(), model.distances(photos()), strict=True):
        np.testing.assert_allclose(distance, model.distances([photo])[0], atol=1e-5)


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


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a Depth Anything V2 folder"):
        load_depth(str(tmp_path), CPU)


def test_colour_attenuation_sees_haze_as_far(photographs: Path) -> None:
    """The haze model itself, I = J t + A (1 - t), over a photograph, t falling to the right."""
    scene = cv2.imread(str(photographs / "coffee.png"))[..., ::-1] / 255
    t = np.linspace(1, 0.1, scene.shape[1])[None, :, None]
    hazy = (255 * (scene * t + 0.95 * (1 - t))).astype(np.uint8)
    columns = colour_attenuation([hazy])[0].mean(0)
    assert np.corrcoef(columns, np.arange(len(columns)))[0, 1] > 0.8
    assert columns[-50:].mean() > columns[:50].mean() + 0.3


def test_colour_attenuation_is_the_published_formula() -> None:
    flat = np.empty((40, 40, 3), np.uint8)
    flat[:, :20], flat[:, 20:] = (200, 100, 50), (100, 100, 150)
    left, right = (
        0.121779 + 0.959710 * v - 0.780245 * s for v, s in ((200 / 255, 0.75), (150 / 255, 1 / 3))
    )
    distance = colour_attenuation([flat])[0]
    assert distance[20, 2] == float(left > right) and distance[20, 37] == float(right > left)


def test_normalise() -> None:
    np.testing.assert_array_equal(normalise(np.full((2, 2), 7.0)), np.zeros((2, 2)))
    np.testing.assert_array_equal(normalise(np.array([[2.0, 4.0, 3.0]])), [[0, 1, 0.5]])
    with pytest.raises(ValueError, match="not finite"):
        normalise(np.array([[np.nan, 1.0]]))
