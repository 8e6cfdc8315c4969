"""Tiles without a trace, alpha, grey and depth; spandrel's own network is the judge."""

from pathlib import Path

import numpy as np
import pytest
import spandrel
import torch
from PIL import Image
from torch import Tensor, nn

from lasr.errors import UserError
from lasr.pictures.read import read_rgb
from tests.support.weights import load_sr
from trainer.models.rrdb import RRDB
from trainer.upscale.engines import Engine, make_engine
from trainer.upscale.tiles import Tiling, upscale, upscale_array, upscale_strips


def engine_of(network: nn.Module) -> Engine:
    return make_engine(network, torch.device("cpu"), "torch")


def whole(strips: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(strips).astype(np.float32) / np.iinfo(strips[0].dtype).max


def linear(x: Tensor) -> Tensor:
    """An engine that upscales smoothly: it shows exactly what tiles, alpha and depth do."""
    return nn.functional.interpolate(x, scale_factor=4, mode="bilinear")


def test_output_equals_spandrels_whatever_the_tiles(weights: Path, photographs: Path) -> None:
    network = spandrel.ModelLoader().load_from_file(weights).model.eval()
    picture = read_rgb(photographs / "china.jpg")[:, 150:230, 200:301]
    with torch.no_grad():
        expected = network(picture[None])[0].clamp(0, 1)
    ours = load_sr(str(weights))
    # 1e-5 is what 16 bit round to; one block sees 22 pixels around, so that nothing is missing.
    torch.testing.assert_close(upscale(ours, picture, 1024), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(upscale(ours, picture, 48), expected, atol=1e-5, rtol=0)


def test_the_seam_of_the_trained_network_is_bounded(photographs: Path) -> None:
    """Weights of Real-ESRGAN: the column where two tiles meet, against the untiled answer."""
    network = load_sr("realesrgan-x4plus").eval()
    picture = read_rgb(photographs / "chelsea.png")[:, 80:112, 60:236]  # fur
    one = upscale(network, picture, 176)
    # Three tiles of 59, 59 and 58 columns, each of which sees 155 of the 176.
    difference = (upscale(network, picture, 64) - one).abs()
    print(f"seam: largest {difference.max() * 255:.1f}/255, mean {difference.mean() * 255:.3f}/255")
    assert 0 < difference.max() < 4 / 255 and difference.mean() < 0.1 / 255


def test_tiles_without_surroundings_show(photographs: Path) -> None:
    picture = np.asarray(Image.open(photographs / "china.jpg"))[150:214, 200:281]
    network = RRDB(8, 1, 8)
    expected = whole(list(upscale_strips(engine_of(network), picture, 4, Tiling(512), np.uint8)))
    for overlap, equal in ((32, True), (0, False)):
        tiling = Tiling(16, overlap)
        got = whole(list(upscale_strips(engine_of(network), picture, 4, tiling, np.uint8)))
        assert (np.abs(got - expected).max() <= 1 / 255) == equal


@pytest.mark.parametrize("margin", [0, 5])
def test_a_wrapped_picture_is_upscaled_as_one_of_many_tiles(photographs: Path, margin: int) -> None:
    """Against the 3x3-tiled picture, upscaled in one go and cropped; one block sees 22 pixels."""
    picture = np.asarray(Image.open(photographs / "china.jpg"))[150:186, 200:255]
    torch.manual_seed(0)
    engine = engine_of(RRDB(8, 1, 8))
    many = np.concatenate(
        list(upscale_strips(engine, np.tile(picture, (3, 3, 1)), 4, Tiling(512), np.uint16))
    )
    around = (
        slice(4 * (36 - margin), 4 * (72 + margin)),
        slice(4 * (55 - margin), 4 * (110 + margin)),
    )
    for tile in (512, 20, 16):  # also tiles that do not divide the sides
        tiling, told = Tiling(tile, 24, wrap=True), list[int]()
        strips = list(upscale_strips(engine, picture, 4, tiling, np.uint16, told.append, margin))
        got = np.concatenate(strips).astype(int)
        assert np.abs(got - many[around]).max() <= 3  # of 65,535
        assert told == sorted(told) and told[-1] == 36 * 55
    alone = upscale_array(engine, picture, 4, Tiling(512), np.uint16).astype(int)
    assert np.abs(alone - many[144:288, 220:440]).max() > 100


def test_strips_and_progress_cover_the_picture(photographs: Path) -> None:
    picture = np.asarray(Image.open(photographs / "china.jpg"))[:50, :70]
    told: list[int] = []
    strips = list(upscale_strips(linear, picture, 4, Tiling(16, 4), np.uint8, told.append))
    assert [len(s) for s in strips] == [52, 52, 52, 44] and {s.shape[1] for s in strips} == {280}
    assert told == sorted(told) and len(told) == 4 * 5 and told[-1] == 50 * 70


def test_tiles_shrink_when_memory_runs_out(
    photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = np.asarray(Image.open(photographs / "china.jpg"))[:60, :70]
    sizes = []

    def narrow(x: Tensor) -> Tensor:
        sizes.append(x.shape[-1])
        if x.shape[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return linear(x)

    tiling = Tiling(64, 4)
    got = np.concatenate(list(upscale_strips(narrow, picture, 4, tiling, np.uint8)))
    assert tiling.tile == 32 and max(sizes) == 43 and "continuing with --tile 32" in caplog.text
    expected = np.concatenate(list(upscale_strips(linear, picture, 4, Tiling(64), np.uint8)))
    assert np.abs(got.astype(int) - expected).max() <= 1

    def never(x: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match="even with the smallest tiles"):
        list(upscale_strips(never, picture, 4, Tiling(64), np.uint8))
    with pytest.raises(RuntimeError, match="shape"):  # another fault is no lack of memory
        list(upscale_strips(lambda x: x.view(7), picture, 4, Tiling(64), np.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_black_or_broken_picture(value: float) -> None:
    grey = np.full((20, 20, 1), 128, np.uint8)

    def broken(x: Tensor) -> Tensor:
        return torch.full((1, 3, 80, 80), value)

    with pytest.raises(UserError, match="float16"):
        list(upscale_strips(broken, grey, 4, Tiling(), np.uint8))
    black = np.zeros((20, 20, 1), np.uint8)  # black may come out black
    if np.isfinite(value):
        assert not next(upscale_strips(broken, black, 4, Tiling(), np.uint8)).any()


def test_a_sprite_has_no_dark_fringe() -> None:
    """Orange on transparent black: every visible pixel of the result is orange."""
    y, x = np.mgrid[0:48, 0:48]
    inside = np.clip(16.5 - np.hypot(x - 24, y - 24), 0, 1)
    sprite = np.zeros((48, 48, 4), np.uint8)
    sprite[inside > 0] = [255, 128, 0, 0]
    sprite[:, :, 3] = (255 * inside).round()
    for tile in (64, 16):
        got = np.concatenate(list(upscale_strips(linear, sprite, 4, Tiling(tile), np.uint8)))
        seen = got[:, :, 3] > 8
        assert seen.mean() > 0.3 and (got[~seen][:, 3] <= 8).all()
        assert np.abs(got[seen][:, :3].astype(int) - [255, 128, 0]).max() <= 8
    assert got[0, 0].tolist() == [0, 0, 0, 0] and got[96, 96].tolist() == [255, 128, 0, 255]


def test_alpha_goes_through_the_network() -> None:
    ramp = np.zeros((16, 64, 2), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = 200, np.arange(64) * 4
    seen = []
    list(
        upscale_strips(
            lambda x: (seen.append(x.clone()), linear(x))[1], ramp, 4, Tiling(64), np.uint8
        )
    )
    assert len(seen) == 2 and torch.allclose(seen[0][0, 0] * 255, torch.arange(64.0) * 4)
    opaque = np.full((16, 16, 4), 255, np.uint8)
    seen.clear()
    got = list(
        upscale_strips(lambda x: (seen.append(x), linear(x))[1], opaque, 4, Tiling(), np.uint8)
    )
    assert len(seen) == 1 and (got[0] == 255).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_and_channels_stay(channels: int) -> None:
    ramp = np.linspace(0, 65_535, 32 * 32 * channels).reshape(32, 32, channels).astype(np.uint16)
    got = next(upscale_strips(linear, ramp, 4, Tiling(), np.uint16))
    assert got.shape == (128, 128, channels) and len(np.unique(got)) > 5000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_array_is_upscaled_as_its_strips(photographs: Path, dtype: type) -> None:
    pixels = np.asarray(Image.open(photographs / "china.jpg"))[:50, :70].astype(dtype)
    got = upscale_array(linear, pixels, 4, Tiling(16, 4))
    expected = np.concatenate(list(upscale_strips(linear, pixels, 4, Tiling(16, 4), dtype)))
    assert got.dtype == dtype and got.shape == (200, 280, 3)
    np.testing.assert_array_equal(got, expected)
    assert upscale_array(linear, pixels, 4, dtype=np.uint16).dtype == np.uint16


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 5)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected h x w x 1 to 4"):
        upscale_array(linear, np.zeros(shape, np.uint8), 4)
    with pytest.raises(ValueError, match="float32 of shape"):
        upscale_array(linear, np.zeros((8, 8, 3), np.float32), 4)
