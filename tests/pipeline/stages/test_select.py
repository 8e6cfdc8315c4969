"""Far and near patches, against brute force on real photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import BuildConfig
from pipeline.stages.colour_attenuation import attenuation
from pipeline.stages.select import Patch, box_mean, select, texture_map
from schemas.manifest import PATCH_SIZE

ID = "00ff" * 16


def config(**changes: object) -> BuildConfig:
    return BuildConfig(images=["."], profile="offline", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def photo(photographs: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(Image.open(photographs / "china.jpg").convert("RGB"))
    return pixels, attenuation(pixels)


def chosen(photo: tuple[np.ndarray, np.ndarray], role: str, **changes: object) -> list[Patch]:
    patches = select(*photo, ID, config(**changes))
    assert [p.role for p in patches] == sorted((p.role for p in patches), reverse=True)
    height, width = photo[1].shape
    for patch in patches:
        assert patch.size == PATCH_SIZE[patch.role]
        assert 0 <= patch.x <= width - patch.size and 0 <= patch.y <= height - patch.size
    return [p for p in patches if p.role == role]


def centres(patches: list[Patch]) -> np.ndarray:
    return np.array([(p.x + p.size // 2, p.y + p.size // 2) for p in patches])


def test_box_mean_is_the_papers_kernel() -> None:
    distance = np.random.default_rng(0).random((40, 50)).astype(np.float32)
    padded = np.pad(distance, 14, mode="symmetric")
    expected = [[padded[y : y + 29, x : x + 29].mean() for x in range(50)] for y in range(40)]
    np.testing.assert_allclose(box_mean(distance), expected, atol=1e-6)


def test_literal_top_k_are_the_k_extreme_centres(photo: tuple[np.ndarray, np.ndarray]) -> None:
    mean = box_mean(photo[1])
    for role, sign in (("lr", 1), ("hr", -1)):
        half, k = PATCH_SIZE[role] // 2, 50  # type: ignore[index]
        fits = mean[half : mean.shape[0] - half + 1, half : mean.shape[1] - half + 1]
        best = np.sort((sign * fits).ravel())[::-1][:k]
        patches = chosen(photo, role, k=k, min_separation=0)
        np.testing.assert_array_equal([sign * np.float32(p.distance) for p in patches], best)
        assert [p.rank for p in patches] == list(range(k))
        at = [mean[y, x] for x, y in centres(patches)]
        np.testing.assert_array_equal(np.float32([p.distance for p in patches]), at)


def test_far_is_far_and_near_is_near(photo: tuple[np.ndarray, np.ndarray]) -> None:
    lowest = min(p.distance for p in chosen(photo, "lr", k=2))
    highest = max(p.distance for p in chosen(photo, "hr", k=2))
    assert lowest > highest + 0.3


@pytest.mark.parametrize("separation", [None, 1, 17])
def test_separation_is_kept_and_greedy(
    photo: tuple[np.ndarray, np.ndarray], separation: int | None
) -> None:
    for role, half in (("lr", 28), ("hr", 112)):
        patches = chosen(photo, role, min_separation=separation)
        places = centres(patches)
        gaps = np.abs(places[:, None] - places[None]).max(-1)[~np.eye(len(places), dtype=bool)]
        assert gaps.min() >= (half if separation is None else separation)
        # Greedy: the first is the extreme one, and no rank is better than the one before it.
        scores = [p.distance if role == "lr" else -p.distance for p in patches]
        assert scores == sorted(scores, reverse=True)


def test_a_photograph_of_one_patch_gives_one_near_patch() -> None:
    pixels = np.zeros((224, 224, 3), np.uint8)
    patches = select(pixels, np.zeros((224, 224), np.float32), ID, config())
    assert [(p.x, p.y) for p in patches if p.role == "hr"] == [(0, 0)]


def test_texture_is_the_patchs_mean_gradient(photo: tuple[np.ndarray, np.ndarray]) -> None:
    gradient = texture_map(photo[0])
    for patch in chosen(photo, "lr") + chosen(photo, "hr"):
        own = gradient[patch.y : patch.y + patch.size, patch.x : patch.x + patch.size]
        assert patch.texture == pytest.approx(own.mean(), rel=1e-4)
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2) * 2
    assert texture_map(ramp)[10, 10] == pytest.approx(2 / 255, rel=1e-4)


@pytest.mark.parametrize("role", ["lr", "hr"])
@pytest.mark.parametrize("strategy", ["depth", "random", "overlap", "inclusion"])
def test_background_filter(photo: tuple[np.ndarray, np.ndarray], strategy: str, role: str) -> None:
    unfiltered = chosen(photo, role, strategy=strategy, k=30)
    least = float(np.median([p.texture for p in unfiltered]))  # so that it leaves something out
    patches = chosen(photo, role, strategy=strategy, k=30, min_texture=least)
    assert patches and all(p.texture >= least for p in patches)
    assert chosen(photo, role, strategy=strategy, min_texture=0.9) == []


def overlap(lr: Patch, hr: Patch) -> float:
    shared = [min(a + lr.size, b + hr.size) - max(a, b) for a, b in ((lr.x, hr.x), (lr.y, hr.y))]
    return max(shared[0], 0) * max(shared[1], 0) / lr.size**2


@pytest.mark.parametrize(("strategy", "least"), [("overlap", 0.4), ("inclusion", 1.0)])
def test_overlap_and_inclusion(
    photo: tuple[np.ndarray, np.ndarray], strategy: str, least: float
) -> None:
    far = chosen(photo, "lr", strategy=strategy, k=40)
    near = chosen(photo, "hr", strategy=strategy, k=40)
    shares = [overlap(lr, hr) for lr, hr in zip(far, near, strict=True)]
    assert min(shares) >= least
    if strategy == "overlap":
        assert min(shares) < 0.99  # not only inclusion


@pytest.mark.parametrize("strategy", ["random", "overlap", "inclusion"])
def test_random_choices_depend_on_seed_and_image_alone(
    photo: tuple[np.ndarray, np.ndarray], strategy: str
) -> None:
    first = select(*photo, ID, config(strategy=strategy, seed=1))
    assert first == select(*photo, ID, config(strategy=strategy, seed=1, shard_size=3, workers=1))
    assert first != select(*photo, ID, config(strategy=strategy, seed=2))
    assert first != select(*photo, "11" * 32, config(strategy=strategy, seed=1))
