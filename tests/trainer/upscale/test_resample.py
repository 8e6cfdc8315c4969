"""Size, alpha and colours of results, against whole pictures in one go and other libraries."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from lasr.pictures.read import read_rgb
from tests.support.weights import load_sr
from trainer.upscale.colour import with_colours_of
from trainer.upscale.resample import Frame, fitted, spread_colours, windows, with_alpha
from trainer.upscale.tiles import upscale

RNG = np.random.default_rng(0)


def strips_of(pixels: np.ndarray, *heights: int) -> Iterator[np.ndarray]:
    """The rows of a picture in strips of these heights, again and again."""
    top = 0
    for height in itertools.cycle(heights):
        if top >= len(pixels):
            return
        yield pixels[top : top + height]
        top += height


def test_windows_are_the_rows_of_the_picture() -> None:
    rows = np.arange(97)[:, None, None]
    ranges = [(0, 5), (0, 40), (12, 13), (39, 97), (96, 97)]
    for heights in ((1,), (7, 30), (97,)):
        for (first, last), got in zip(
            ranges, windows(strips_of(rows, *heights), ranges), strict=True
        ):
            assert got[:, 0, 0].tolist() == list(range(first, last))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(600, 150), (217, 150), (1201, 301), (1, 1)])
def test_strips_are_resized_as_the_whole_picture(size: tuple[int, int], dtype: type) -> None:
    """Against Pillow's Lanczos of the whole, which rounds floats nowhere; up and down."""
    pixels = RNG.integers(0, 65_536, (1200, 300, 3), np.uint16)
    got = np.concatenate(list(fitted(strips_of(pixels, 130, 7), Frame(1200, 300), size, dtype)))
    planes = [
        Image.fromarray(pixels[..., c].astype(np.float32)).resize(
            size[::-1], Image.Resampling.LANCZOS
        )
        for c in range(3)
    ]
    most = np.iinfo(dtype).max
    expected = np.stack([np.asarray(plane) for plane in planes], axis=2).clip(0, 65_535)
    assert got.dtype == dtype and got.shape == (*size, 3)
    assert np.abs(got - expected * (most / 65_535)).max() < 0.5 + 2e-5 * most


def test_a_wrapped_picture_is_resized_as_one_of_many_tiles() -> None:
    """Against a 3x3-tiled picture, resized whole and cropped: no border is special."""
    tile = RNG.integers(0, 65_536, (40, 60, 1), np.uint16)
    frame = Frame(40, 60, margin=14)
    around = np.pad(tile, ((14, 14), (14, 14), (0, 0)), mode="wrap")
    got = np.concatenate(list(fitted(strips_of(around, 9), frame, (25, 33), np.uint16)))
    many = np.tile(tile, (3, 3, 1))
    whole = np.concatenate(list(fitted([many], Frame(120, 180), (75, 99), np.uint16)))
    assert np.abs(got.astype(int) - whole[25:50, 33:66]).max() <= 1
    alone = np.concatenate(list(fitted([tile], Frame(40, 60), (25, 33), np.uint16)))
    assert np.abs(alone.astype(int) - whole[25:50, 33:66]).max() > 500


def test_the_margin_is_left_out_where_the_size_is_right() -> None:
    pixels = RNG.integers(0, 65_536, (50, 70, 3), np.uint16)
    frame = Frame(40, 60, margin=5)
    for heights in ((3,), (50,), (5, 40, 5)):
        got = list(fitted(strips_of(pixels, *heights), frame, (40, 60), np.uint8))
        expected = np.rint(pixels[5:45, 5:65] / 257)
        assert np.abs(np.concatenate(got) - expected).max() == 0


def test_transparent_colours_do_not_leak_when_a_picture_is_resized() -> None:
    """Orange on transparent green: premultiplied, green is not seen."""
    sprite = np.zeros((64, 64, 4), np.uint8)
    sprite[:] = [0, 255, 0, 0]
    sprite[16:48, 16:48] = [255, 128, 0, 255]
    (got,) = fitted([sprite], Frame(64, 64), (40, 40), np.uint8)
    seen = got[..., 3] > 8
    assert np.abs(got[seen][:, :3].astype(int) - [255, 128, 0]).max() <= 1 and seen.sum() > 400


def test_gamma_light_brings_a_result_back_to_its_picture(photographs: Path) -> None:
    """Why Lanczos works on values as they are stored: docs/upscale.md gives these figures."""
    network, kept = load_sr("rrdb-small").eval(), {}
    for name, (y, x) in {"china.jpg": (150, 100), "coffee.png": (100, 200)}.items():
        picture = read_rgb(photographs / name)[:, y : y + 64, x : x + 64]
        large = upscale(network, picture).permute(1, 2, 0).numpy()
        for light in ("gamma", "linear"):
            values = large if light == "gamma" else _to_linear(large)
            pixels = np.rint(values * 65_535).astype(np.uint16)
            (back,) = fitted([pixels], Frame(256, 256), (64, 64), np.uint16)
            values = back / 65_535 if light == "gamma" else _to_gamma(back / 65_535)
            difference = (values - picture.permute(1, 2, 0).numpy())[4:-4, 4:-4]
            kept[name, light] = -10 * np.log10((difference**2).mean())
            print(f"{name}, {light} light: {kept[name, light]:.1f} dB")
    for name in ("china.jpg", "coffee.png"):
        assert kept[name, "gamma"] > kept[name, "linear"] + 3


def _to_linear(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _to_gamma(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055)


def test_alpha_by_lanczos_is_that_of_the_whole_channel() -> None:
    alpha = RNG.integers(0, 256, (33, 21), np.uint8)
    colours = np.zeros((132, 84, 3), np.uint16)
    got = np.concatenate(list(with_alpha(strips_of(colours, 50), alpha, (132, 84), wrap=False)))
    expected = np.asarray(
        Image.fromarray(alpha.astype(np.float32)).resize((84, 132), Image.Resampling.LANCZOS)
    )
    assert got.shape == (132, 84, 4) and got.dtype == np.uint16
    assert np.abs(got[..., 3] - expected.clip(0, 255) * 257).max() <= 1
    many = np.concatenate(list(with_alpha([colours], np.tile(alpha, (3, 3)), (132, 84), False)))
    wrapped = np.concatenate(
        list(with_alpha(strips_of(colours[:44, :28], 9), alpha, (44, 28), wrap=True))
    )
    assert np.abs(wrapped[..., 3].astype(int) - many[44:88, 28:56, 3]).max() <= 1


@pytest.mark.parametrize("wrap", [False, True])
def test_invisible_pixels_get_the_nearest_visible_colour(wrap: bool) -> None:
    colours = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    alpha = (RNG.random((20, 30)) < 0.02).astype(np.uint8) * 255
    got = spread_colours(colours, alpha, wrap)
    ys, xs = np.nonzero(alpha)
    for y, x in itertools.product(range(20), range(30)):
        dy, dx = np.abs(ys - y), np.abs(xs - x)
        if wrap:
            dy, dx = np.minimum(dy, 20 - dy), np.minimum(dx, 30 - dx)
        distance = np.hypot(dy, dx)
        # OpenCV's 5x5 mask measures distances to 2 %.
        near = distance <= distance.min() * 1.05 + 1e-6
        assert (got[y, x] == colours[ys[near], xs[near]]).all(axis=1).any()
    assert (got[ys, xs] == colours[ys, xs]).all()
    for same in (np.zeros_like(alpha), np.full_like(alpha, 255)):
        assert spread_colours(colours, same, wrap) is colours


def stablesr(result: np.ndarray, source: np.ndarray) -> np.ndarray:
    """StableSR's formula as published, at the result's size: five levels of a trous wavelets."""

    def low(image: torch.Tensor) -> torch.Tensor:
        line = torch.tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(line, line).expand(3, 1, 3, 3)
        for level in range(5):
            padded = functional.pad(image, [2**level] * 4, mode="replicate")
            image = functional.conv2d(padded, kernel, groups=3, dilation=2**level)
        return image

    large, enlarged = (torch.from_numpy(a).permute(2, 0, 1)[None].float() for a in (result, source))
    return (large - low(large) + low(enlarged))[0].permute(1, 2, 0).numpy()


def test_colours_are_those_of_the_input(photographs: Path) -> None:
    """Against StableSR's formula, whose low-pass is taken at four times the size."""
    picture = np.asarray(Image.open(photographs / "coffee.png").convert("RGB"))[:97, :130]
    size = 4 * 130, 4 * 97
    large = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    detail = RNG.normal(0, 8, large.shape)  # what the network adds, and may keep
    shift = np.stack([12 + 0 * x, -20 * x / size[0], 10 * np.cos(y / 90)], axis=2)
    shifted = (large * 0.8 + 25 + detail + shift).clip(0, 255)
    pixels = np.rint(shifted * 257).astype(np.uint16)
    got = np.concatenate(list(with_colours_of(picture, strips_of(pixels, 61), 4))) / 257
    expected = stablesr(shifted, cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC))
    error = np.abs(got - expected.clip(0, 255))
    assert error.mean() < 0.3 and np.quantile(error, 0.999) < 3
    coarse = [cv2.blur(a, (61, 61)) for a in (got.astype(np.float32), large)]
    assert np.abs(coarse[0] - coarse[1])[40:-40, 40:-40].mean() < 0.5
    fine = (got - cv2.blur(got, (9, 9)))[40:-40, 40:-40]
    assert fine.std() > 0.9 * detail.std()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colours_of_grey_and_transparent_pictures(channels: int) -> None:
    source = np.full((40, 50, channels), 100, np.uint8)
    large = np.full((160, 200, channels), 140 * 257, np.uint16)
    if channels in (2, 4):  # the colour of invisible pixels says nothing
        source[..., -1], large[..., -1] = 255, 65_535
        source[:, 25:] = large[:, 100:] = 0
    got = np.concatenate(list(with_colours_of(source, strips_of(large, 33), 4)))
    shown = got[:, :90, : max(channels - 1, 1)]
    assert np.abs(shown.astype(int) - 100 * 257).max() <= 2
    if channels in (2, 4):
        assert (got[..., -1] == large[..., -1]).all()
