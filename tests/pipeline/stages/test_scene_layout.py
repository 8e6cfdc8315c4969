"""The layout formula: its direction, its paths against a reference, and two known disparities."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.stages.depth import at_size
from pipeline.stages.scene_layout import SIDE, SKYLINE, STEP, scene_layout
from pipeline.stages.select import BOX, Patch, SelectConfig, select
from tests.support.weights import load_depth

OPENCV_DOC = Path("/usr/share/doc/opencv-doc/examples/data")


def scene() -> np.ndarray:
    """A dark post on the ground before an even wall, its foot below the picture."""
    pixels = np.full((240, 320, 3), 180, np.uint8)
    pixels[90:, 140:180] = (40, 60, 50)
    return pixels


def test_up_is_far_and_what_stands_on_the_ground_is_near() -> None:
    plain = scene_layout(np.full((240, 320, 3), 128, np.uint8))
    assert plain[0].min() == 1 and plain[-1].max() == 0
    assert (np.diff(plain, axis=0) <= 0).all()
    distance = at_size(scene_layout(scene()), (240, 320))
    for row in range(100, 200, 20):
        post, wall = distance[row, 150:170], distance[row, [60, 90, 230, 260]]
        assert post.max() < wall.min() - 0.1
    # Upside down the post hangs from the top: now it is the background.
    hanging = at_size(scene_layout(scene()[::-1]), (240, 320))
    assert hanging[100, 150:170].min() > hanging[100, [90, 230]].max() + 0.05


def cheapest(lab: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Path costs by relaxation until nothing changes: h x w x 3 and h x w bool -> h x w."""
    cost = np.where(start, 0.0, np.inf)
    along = [np.linalg.norm(np.diff(lab, axis=axis), axis=2) + STEP for axis in (0, 1)]
    while True:
        before = cost.copy()
        for axis, step in enumerate(along):
            flat, steps = np.moveaxis(cost, axis, 0), np.moveaxis(step, axis, 0)
            np.minimum(flat[1:], flat[:-1] + steps, out=flat[1:])
            np.minimum(flat[:-1], flat[1:] + steps, out=flat[:-1])
        if np.array_equal(before, cost):
            return cost


def test_paths_are_the_cheapest(photographs: Path) -> None:
    photograph = cv2.imread(str(photographs / "china.jpg"))[..., ::-1]
    pixels = cv2.resize(photograph, (96, 64), interpolation=cv2.INTER_AREA)  # smaller than SIDE
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), 1).astype(float)
    background, ground = np.zeros((64, 96), bool), np.zeros((64, 96), bool)
    background[0] = background[: int(64 * SKYLINE), [0, -1]] = ground[-1] = True
    far, near = cheapest(lab, background), cheapest(lab, ground)
    np.testing.assert_allclose(scene_layout(pixels), near / (far + near), atol=1e-5)


@pytest.mark.parametrize("shape", [(224, 224), (300, 1900), (2000, 256)])
def test_maps_are_small_and_enlarged_like_others(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    model = load_depth("scene-layout", torch.device("cpu"))
    (small,) = model.predict_some([model.prepare(pixels)])
    assert max(small.shape) == SIDE and (small.min(), small.max()) == (0, 1)
    distance = model.distance(pixels)
    assert distance.shape == shape and distance.dtype == np.float32
    np.testing.assert_array_equal(distance, model.distance(pixels.copy()))


def motorcycle() -> tuple[np.ndarray, np.ndarray]:
    data = pytest.importorskip("skimage.data")
    left, _, disparity = data.stereo_motorcycle()
    return left, np.where(np.isfinite(disparity), disparity, 0)


def aloe() -> tuple[np.ndarray, np.ndarray]:
    if not OPENCV_DOC.is_dir():
        pytest.skip("Debian's package opencv-doc is not installed (aloeL.jpg, aloeGT.png)")
    left = cv2.imread(str(OPENCV_DOC / "aloeL.jpg"))[..., ::-1]
    return left, cv2.imread(str(OPENCV_DOC / "aloeGT.png"), cv2.IMREAD_GRAYSCALE).astype(float)


@pytest.mark.parametrize("stereo", [motorcycle, aloe])
def test_near_and_far_are_those_of_a_stereo_pair(stereo: object) -> None:
    """Disparity is inverse depth: 0 where it is unknown."""
    from scipy.stats import spearmanr  # takes seconds

    pixels, disparity = stereo()  # type: ignore[operator]
    distance = at_size(scene_layout(pixels), pixels.shape)
    known = disparity > 0
    assert spearmanr(-distance[known][::7], disparity[known][::7]).statistic >= 0.70
    share = cv2.blur(known.astype(np.float32), (BOX, BOX))
    mean = cv2.blur(disparity.astype(np.float32), (BOX, BOX)) / np.maximum(share, 1e-6)

    def nearness(patches: list[Patch]) -> np.ndarray:
        centres = [(patch.y + patch.size // 2, patch.x + patch.size // 2) for patch in patches]
        return np.array([mean[centre] for centre in centres if share[centre] > 0.1])

    for image_id in ("00ff" * 16, "ab12" * 16):
        patches = select(pixels, distance, image_id, SelectConfig())
        far = nearness([patch for patch in patches if patch.role == "lr"])
        near = nearness([patch for patch in patches if patch.role == "hr"])
        assert len(far) >= 4 and len(near) >= 4
        assert (far[:, None] < near).mean() >= 0.85
