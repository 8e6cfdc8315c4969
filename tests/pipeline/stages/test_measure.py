"""What is measured of a patch, against other libraries' figures for the same."""

from pathlib import Path

import cv2
import imagehash
import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.transform import downscale_local_mean

from pipeline.stages.measure import measure, perceptual_hash
from schemas.manifest import VALIDATION, split_of


def photograph(photographs: Path, name: str = "china.jpg") -> np.ndarray:
    return np.asarray(Image.open(photographs / name).convert("RGB"))


def test_rows_hold_the_measures_of_their_pixels(manifest: Path) -> None:
    rows = ds.dataset(str(manifest)).to_table().to_pylist()
    for row in rows:
        pixels = cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
        luma = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
        assert row["luma"] == pytest.approx(luma.mean() / 255, abs=2e-3)
        assert row["contrast"] == pytest.approx(luma.std() / 255, abs=2e-3)
        assert row["shadows"] == pytest.approx((luma <= 4).mean(), abs=0.02)
        assert row["highlights"] == pytest.approx((luma >= 251).mean(), abs=0.02)
        edges = ndimage.laplace(
            cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64), mode="mirror"
        )
        assert row["sharpness"] == pytest.approx(edges.var(), rel=1e-5)
        side = len(pixels) // 56
        small = downscale_local_mean(pixels, (side, side, 1)).round().astype(np.uint8)
        edges = ndimage.laplace(
            np.asarray(Image.fromarray(small).convert("L"), np.float64), mode="mirror"
        )
        assert row["sharpness_56"] == pytest.approx(edges.var(), rel=0.02, abs=0.5)
        lab = rgb2lab(small).mean((0, 1))
        assert (row["colour_a"], row["colour_b"]) == pytest.approx(lab[1:], abs=0.5)
        if row["phash"]:
            assert row["phash"] == str(imagehash.phash(Image.fromarray(pixels)))
        assert row["split"] == split_of(row["image_id"])
    assert sum(row["phash"] is not None for row in rows) > len(rows) / 2


@pytest.mark.parametrize(
    ("luma", "shadows", "highlights"), [(4, 1, 0), (5, 0, 0), (250, 0, 0), (251, 0, 1)]
)
def test_clipped_pixels_include_the_bounds(luma: int, shadows: int, highlights: int) -> None:
    found = measure(np.full((56, 56, 3), luma, np.uint8))
    assert (found.shadows, found.highlights) == (shadows, highlights)


def test_measures_follow_what_they_are_named_for(photographs: Path) -> None:
    patch = photograph(photographs)[100:324, 100:324]
    plain = measure(patch)
    blurred = measure(cv2.GaussianBlur(patch, (0, 0), 2))
    darker = measure((patch * 0.5).astype(np.uint8))
    assert blurred.sharpness < plain.sharpness / 10
    assert darker.luma == pytest.approx(plain.luma / 2, abs=0.01)
    assert darker.contrast == pytest.approx(plain.contrast / 2, abs=0.01)
    white, black = (measure(np.full((56, 56, 3), value, np.uint8)) for value in (255, 0))
    assert (white.luma, white.highlights, white.shadows) == (1, 1, 0)
    assert (black.luma, black.highlights, black.shadows) == (0, 0, 1)
    assert white.contrast == white.sharpness == 0 and white.phash is None


def test_sharpness_at_equal_size_does_not_depend_on_the_size(photographs: Path) -> None:
    """A scene as a near patch and as a far one: only where detail is lost do they differ."""
    smooth = photograph(photographs)[100:212, 100:212]  # enlarged, as phones and scanners do
    near = cv2.resize(smooth, (224, 224), interpolation=cv2.INTER_CUBIC)
    far = cv2.resize(near, (56, 56), interpolation=cv2.INTER_AREA)
    assert measure(far).sharpness_56 == measure(near).sharpness_56 == measure(far).sharpness
    assert measure(near).sharpness < measure(far).sharpness / 2
    blurred = measure(cv2.GaussianBlur(far, (0, 0), 1))
    assert blurred.sharpness_56 < measure(near).sharpness_56 / 10
    red, blue = (
        measure(np.full((56, 56, 3), rgb, np.uint8)) for rgb in ((200, 60, 60), (60, 60, 200))
    )
    assert red.colour_a > 40 and red.colour_b > 10 and blue.colour_b < -40


def test_measures_do_not_hang_on_where_the_pixels_lie(photographs: Path) -> None:
    picture = photograph(photographs)
    for offset in range(1, 9):
        patch = picture[offset : offset + 56, 2 * offset : 2 * offset + 56]
        assert measure(patch) == measure(patch.copy())


def test_hashes_survive_what_leaves_a_picture_the_same(photographs: Path, tmp_path: Path) -> None:
    def distance(one: np.ndarray, other: np.ndarray) -> int:
        first, second = perceptual_hash(one), perceptual_hash(other)
        assert first and second
        return int(imagehash.hex_to_hash(first) - imagehash.hex_to_hash(second))

    picture, other = photograph(photographs), photograph(photographs, "flower.jpg")
    Image.fromarray(picture).save(tmp_path / "again.jpg", quality=50)
    assert distance(picture, photograph(tmp_path, "again.jpg")) <= 6
    assert distance(picture, cv2.resize(picture, None, fx=0.5, fy=0.5)) <= 6
    assert distance(picture, other) > 20
    noise = np.random.default_rng(0).normal(128, 3, picture.shape).astype(np.uint8)
    assert perceptual_hash(noise) is None  # a plain area: its hash would be that of the noise


def test_about_one_photograph_in_twenty_is_for_validation_and_stays_there() -> None:
    ids = [f"{i:064x}"[::-1] for i in range(100_000)]
    share = np.mean([split_of(name) == "val" for name in ids])
    assert abs(share - VALIDATION) < 0.005
    assert (split_of("0" * 64), split_of("f" * 64)) == ("val", "train")
    assert (split_of("0ccccccc" + "f" * 56), split_of("0ccccccd" + "0" * 56)) == ("val", "train")
