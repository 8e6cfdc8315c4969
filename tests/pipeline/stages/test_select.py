"""Far and near patches, against brute force on real photographs."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

from pipeline.config import BuildConfig
from pipeline.stages.colour_attenuation import attenuation
from pipeline.stages.depth import pack, unpack
from pipeline.stages.select import BOX, LEVELS, Patch, SelectConfig, box_mean, select, texture_map
from schemas.manifest import PATCH_SIZE
from tests.conftest import run_stages

ID = "00ff" * 16


def config(**changes: object) -> BuildConfig:
    return BuildConfig(images=["."], **changes)  # type: ignore[arg-type]


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
        # Equal up to the precision of cached maps; among equals the choice is random.
        ours = [sign * p.distance for p in patches]
        np.testing.assert_allclose(ours, best, atol=1.01 / LEVELS)
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
        assert np.diff(scores).max() <= 1.01 / LEVELS


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


def test_the_filter_of_far_patches_leaves_near_ones_as_they_are(
    photo: tuple[np.ndarray, np.ndarray],
) -> None:
    least = float(np.median([p.texture for p in chosen(photo, "lr", k=30)]))
    patches = chosen(photo, "lr", k=30, far_texture=least)
    assert patches and all(p.texture >= least for p in patches)
    assert chosen(photo, "hr", far_texture=0.9) == chosen(photo, "hr")
    assert chosen(photo, "lr", far_texture=0.9) == []
    assert chosen(photo, "lr", k=30, far_texture=least / 2, min_texture=least) == patches
    filtered = chosen(photo, "lr", profile="offline")  # filters far patches unless told otherwise
    assert filtered == chosen(photo, "lr", far_texture=0.03) != chosen(photo, "lr")
    literal = {"profile": "offline", "far_texture": 0, "min_texture": 0}
    assert chosen(photo, "lr", **literal) == chosen(photo, "lr")
    assert chosen(photo, "hr", **literal) == chosen(photo, "hr")
    near = chosen(photo, "hr", profile="offline", k=30)
    assert near == chosen(photo, "hr", k=30, min_texture=0.01)


@pytest.mark.parametrize(("contrast", "kept"), [(0.0, False), (0.3, True), (1.0, True)])
def test_a_soft_photograph_gives_patches_unless_it_is_blank(contrast: float, kept: bool) -> None:
    """A profile's bounds are for most photographs, those of the user for all."""
    rng = np.random.default_rng(0)
    soft = (128 + contrast * rng.normal(0, 7, (300, 400, 3))).clip(0, 255).astype(np.uint8)
    assert (0.005 < texture_map(soft).mean() < 0.03) == kept
    photo = soft, np.tile(np.linspace(0, 1, 400, dtype=np.float32), (300, 1))
    for role in PATCH_SIZE:
        assert bool(chosen(photo, role, profile="offline")) == kept
        assert not chosen(photo, role, profile="offline", min_texture=0.03)
    assert not chosen(photo, "lr", profile="offline", far_texture=0.03)
    assert bool(chosen(photo, "hr", profile="offline", far_texture=0.03)) == kept


def test_which_patches_the_two_filters_leave_out_of_a_manifest(
    photographs: Path, tmp_path: Path
) -> None:
    """`lasr build --far-texture` filters far patches alone, `--min-texture` both."""

    def textures(**filters: float) -> dict[str, list[tuple[str, float]]]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        images = [str(photographs / name) for name in ("china.jpg", "rocket.jpg")]
        literal = {"far_texture": 0.0, "min_texture": 0.0}
        run_stages(
            BuildConfig(images=images, out=out, profile="test", k=4, **(literal | filters))  # type: ignore[arg-type]
        )
        rows = ds.dataset(out).to_table(columns=["role", "patch_id", "texture"]).to_pylist()
        return {
            role: sorted((r["patch_id"], r["texture"]) for r in rows if r["role"] == role)
            for role in PATCH_SIZE
        }

    def least(found: list[tuple[str, float]]) -> float:
        return min(texture for _, texture in found)

    stage = SelectConfig(far_texture=0.05, min_texture=0.02)  # without a profile
    assert (stage.least_texture("lr"), stage.least_texture("hr")) == (0.05, 0.02)
    literal, far, both = textures(), textures(far_texture=0.05), textures(min_texture=0.05)
    assert least(literal["lr"]) < 0.05 and least(literal["hr"]) < 0.05
    assert least(far["lr"]) >= 0.05 and far["hr"] == literal["hr"]
    assert both["lr"] == far["lr"] and least(both["hr"]) >= 0.05
    # The stricter one counts for far patches.
    assert textures(min_texture=0.02, far_texture=0.05)["lr"] == far["lr"]


def plateaus() -> dict[str, np.ndarray]:
    """Masks of 640 x 960: where a map has one and the same extreme value."""
    y, x = np.mgrid[:640, :960]
    shapes = {
        "all": np.ones((640, 960), bool),
        "sky": y < 260,
        "right": x > 500,
        "ring": abs(np.hypot(y - 320, x - 480) - 230) < 60,
        "diagonal": abs(y - x * 2 // 3) < 60,
        "islands": (np.hypot(y % 320 - 160, x % 480 - 240) < 110),
        "corners": (abs(y - 320) > 150) & (abs(x - 480) > 300),
        "under a skyline": y < 200 + 90 * np.sin(x / 90),
    }
    return {name: mask.astype(bool) for name, mask in shapes.items()}


def on_map(mask: np.ndarray, role: str, image_id: str, jitter: float = 0) -> list[Patch]:
    """Patches of one role from a map that is extreme on the mask, and graded elsewhere."""
    rng = np.random.default_rng(3)
    ramp = np.linspace(0.3, 0.7, mask.size, dtype=np.float32).reshape(mask.shape)
    distance = np.where(mask, 1.0 if role == "lr" else 0.0, ramp).astype(np.float32)
    noise = rng.uniform(-jitter, jitter, mask.shape)
    distance = np.clip(distance + noise, 0, 1).astype(np.float32)
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    return [p for p in select(pixels, distance, image_id, config()) if p.role == role]


def inner(mask: np.ndarray, role: str) -> np.ndarray:
    """Corners of the patches whose box mean is the plateau's value, as (x, y)."""
    size, half = PATCH_SIZE[role], PATCH_SIZE[role] // 2  # type: ignore[index]
    full = cv2.blur(mask.astype(np.float64), (BOX, BOX), borderType=cv2.BORDER_REFLECT) > 1 - 1e-9
    y, x = np.nonzero(full[half : half + 640 - size + 1, half : half + 960 - size + 1])
    return np.stack([x, y], 1)


@pytest.mark.parametrize("role", ["lr", "hr"])
@pytest.mark.parametrize("name", plateaus())
def test_a_plateau_is_covered_and_not_read_from_its_top_left(name: str, role: str) -> None:
    """As many as fit are on it; over photographs, and within one, they are everywhere on it."""
    mask = plateaus()[name]
    corners = inner(mask, role)
    separation = PATCH_SIZE[role] // 2  # type: ignore[index]
    on_plateau, some = set(map(tuple, corners.tolist())), corners[:: len(corners) // 500 + 1]
    found = []
    for number in range(4):
        places = np.array([(p.x, p.y) for p in on_map(mask, role, f"{number:064x}")])
        gaps = np.abs(places[:, None] - places[None]).max(-1)[~np.eye(len(places), dtype=bool)]
        assert gaps.min() >= separation
        on = np.array([tuple(place) in on_plateau for place in places.tolist()])
        taken = places[on]
        found.append(taken[0])
        nearest = np.abs(some[:, None] - taken[None]).max(-1).min(1)
        # A graded place is taken only if the plateau has no room left.
        assert on.all() or (nearest < separation).all()
        # No part of the plateau is far from all patches: its share of the area would be a square
        # of twice the side `perfect`.
        perfect = np.sqrt(len(corners) / len(taken)) / 2
        assert nearest.max() <= max(3.2 * perfect, 2 * separation)
    assert len(np.unique(found, axis=0)) > 2  # the first one is drawn
    spread = np.ptp(corners, axis=0)
    assert (np.ptp(found, axis=0) >= spread / 4).all()


@pytest.mark.parametrize("role", ["lr", "hr"])
def test_values_that_a_cached_map_cannot_tell_apart_are_equal(role: str) -> None:
    """Rounding errors of a running sum would decide instead, the same way for every seed."""
    mask = plateaus()["sky"] if role == "lr" else ~plateaus()["sky"]
    places = {
        tuple((p.x, p.y) for p in on_map(mask, role, f"{number:064x}", jitter=3e-6))
        for number in range(5)
    }
    assert len(places) == 5
    ramp = np.tile(np.linspace(0, 1, 960, dtype=np.float32), (640, 1))
    pixels = np.zeros((640, 960, 3), np.uint8)
    for distance in (unpack(pack(ramp)), unpack(pack(ramp**4))):
        patches = select(pixels, distance, ID, config())
        assert patches == select(pixels, unpack(pack(distance)), ID, config())
        columns = [p.x for p in patches if p.role == role]
        assert min(columns) > 800 if role == "lr" else max(columns) < 300
        assert np.ptp([p.y for p in patches if p.role == role]) > 250


def test_ties_are_drawn_from_seed_and_photograph_alone() -> None:
    distance, pixels = np.zeros((500, 700), np.float32), np.zeros((500, 700, 3), np.uint8)
    first = select(pixels, distance, ID, config(seed=1))
    assert first == select(pixels, distance, ID, config(seed=1, shard_size=3, workers=1))
    others = [
        select(pixels, distance, ID, config(seed=2)),
        select(pixels, distance, "11" * 32, config()),
    ]
    assert first not in others
    # A smaller k gives the first of them.
    fewer = select(pixels, distance, ID, config(seed=1, k=3))
    assert fewer == [p for p in first if p.rank < 3]


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
