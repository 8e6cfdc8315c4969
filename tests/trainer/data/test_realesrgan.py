"""Real-ESRGAN's degradations: kernels written differently, published probabilities, statistics."""

import io
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data

from trainer.data import realesrgan as module
from trainer.data.realesrgan import FIRST, SECOND, Round, degrade

ASTRONAUT = np.ascontiguousarray(data.astronaut()[60:116, 190:246])  # 56 x 56: face and hair


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Kernels ------------------------------------------------------------------------------------------


def by_covariance(
    profile: Callable[[float], float], size: int, sigma_x: float, sigma_y: float, angle: float
) -> np.ndarray:
    """A kernel point by point, through the inverse of the turned covariance matrix."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    kernel, half = np.empty((size, size)), size // 2
    for row, column in itertools.product(range(size), repeat=2):
        point = np.array([column - half, row - half])
        kernel[row, column] = profile(point @ inverse @ point)
    return kernel / kernel.sum()


@pytest.mark.parametrize("size", [7, 13, 21])
@pytest.mark.parametrize(("sigma_y", "angle"), [(1.7, 0.0), (0.6, 2.4), (2.9, -0.7)])
def test_kernels_are_those_of_their_covariance(size: int, sigma_y: float, angle: float) -> None:
    form = module.quadratic_form(size, 1.7, sigma_y, angle)
    for kernel, profile in (
        (module.gaussian(form), lambda q: np.exp(-q / 2)),
        (module.generalized_gaussian(form, 0.6), lambda q: np.exp(-(q**0.6) / 2)),
        (module.generalized_gaussian(form, 3.1), lambda q: np.exp(-(q**3.1) / 2)),
        (module.plateau(form, 1.4), lambda q: 1 / (1 + q**1.4)),
    ):
        expected = by_covariance(profile, size, 1.7, sigma_y, angle)
        np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-14)


def test_sinc_is_the_circular_low_pass() -> None:
    from scipy.special import j1  # takes seconds, as scipy.stats below

    size, cutoff = 21, 1.3
    expected = np.empty((size, size))
    for row, column in itertools.product(range(size), repeat=2):
        r = np.hypot(row - 10, column - 10)
        at_centre = cutoff**2 / (4 * np.pi)
        expected[row, column] = cutoff * j1(cutoff * r) / (2 * np.pi * r) if r else at_centre
    np.testing.assert_allclose(module.sinc(size, cutoff), expected / expected.sum(), atol=1e-6)
    # It lets pass what is below the cutoff and holds back what is above.
    response = np.abs(np.fft.rfft(module.sinc(size, cutoff).sum(0), 512))
    frequency = np.linspace(0, np.pi, 257)
    assert (abs(response[frequency < 1.0] - 1) < 0.2).all()
    assert (response[frequency > 1.6] < 0.15).all()


@pytest.mark.parametrize("settings", [FIRST, SECOND], ids=["first", "second"])
def test_drawn_kernels_are_symmetric_and_keep_brightness(settings: Round) -> None:
    generator = rng()
    for _ in range(400):
        kernel = module.draw_kernel(settings, generator)
        assert kernel.shape[0] == kernel.shape[1] and kernel.shape[0] in range(7, 22, 2)
        assert np.isfinite(kernel).all() and kernel.sum() == pytest.approx(1, abs=1e-12)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)


# What is drawn ------------------------------------------------------------------------------------


def consistent(count: int, draws: int, probability: float) -> bool:
    """Whether a count agrees with a probability; a true one is refused once in 100,000."""
    from scipy import stats

    return bool(stats.binomtest(count, draws, probability).pvalue > 1e-5)


def follows(values: np.ndarray, distribution: object) -> bool:
    """Whether values agree with a distribution; true ones are refused once in 100,000."""
    from scipy import stats

    return bool(stats.kstest(values, distribution).pvalue > 1e-5)


def is_uniform(values: np.ndarray, low: float, width: float) -> bool:
    from scipy import stats

    return follows(values, stats.uniform(low, width).cdf)


PUBLISHED = {  # options/train_realesrgan_x4plus.yml
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}


@pytest.mark.parametrize(("settings", "widest"), [(FIRST, 3.0), (SECOND, 1.5)])
def test_kinds_of_kernels_come_as_often_as_published(
    settings: Round, widest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    sigmas, betas = [], {"generalized": [], "plateau": []}  # type: ignore[var-annotated]
    made = module.quadratic_form

    def form(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
        seen["anisotropic"] += angle != 0
        assert (sigma_x == sigma_y) == (angle == 0) and abs(angle) <= np.pi
        sigmas.extend([sigma_x, sigma_y])
        return made(size, sigma_x, sigma_y, angle)

    def profile(name: str) -> Callable[..., np.ndarray]:
        def drawn(form: np.ndarray, *beta: float) -> np.ndarray:
            seen[name] += 1
            betas.get(name, []).extend(beta)
            return form

        return drawn

    monkeypatch.setattr(module, "quadratic_form", form)
    monkeypatch.setattr(module, "gaussian", profile("gaussian"))
    monkeypatch.setattr(module, "generalized_gaussian", profile("generalized"))
    monkeypatch.setattr(module, "plateau", profile("plateau"))
    generator, draws = rng(), 6000
    for _ in range(draws):
        module.draw_kernel(settings, generator)
    others = seen["gaussian"] + seen["generalized"] + seen["plateau"]
    assert consistent(draws - others, draws, 0.1)  # sinc
    assert consistent(seen["gaussian"], others, PUBLISHED["iso"] + PUBLISHED["aniso"])
    assert consistent(seen["generalized"], others, 0.12 + 0.03)
    assert consistent(seen["plateau"], others, 0.12 + 0.03)
    assert consistent(seen["anisotropic"], others, 0.25 + 0.03 + 0.03)
    assert 0.2 <= min(sigmas) < 0.25 and widest - 0.05 < max(sigmas) <= widest
    for name, low, high in (("generalized", 0.5, 4), ("plateau", 1, 2)):
        drawn = np.array(betas[name])
        assert low <= drawn.min() and high - 0.1 < drawn.max() <= high
        assert consistent(int((drawn <= 1).sum()), len(drawn), 0.5)


def test_sinc_kernels_have_the_published_cutoffs(monkeypatch: pytest.MonkeyPatch) -> None:
    cutoffs: dict[bool, list[float]] = {True: [], False: []}
    monkeypatch.setattr(
        module, "sinc", lambda size, cutoff: cutoffs[size < 13].append(cutoff) or np.ones((1, 1))
    )
    generator = rng()
    for _ in range(4000):
        module.draw_kernel(Round(sinc_prob=1), generator)
    assert consistent(len(cutoffs[True]), 4000, 3 / 8)  # 7, 9, 11 of 7 … 21
    for small, lowest in ((True, np.pi / 3), (False, np.pi / 5)):
        assert is_uniform(cutoffs[small], lowest, np.pi - lowest)


@pytest.mark.parametrize(
    ("settings", "up", "down", "low", "high"),
    [(FIRST, 0.2, 0.7, 0.15, 1.5), (SECOND, 0.3, 0.4, 0.3, 1.2)],
)
def test_factors_come_as_often_as_published(
    settings: Round, up: float, down: float, low: float, high: float
) -> None:
    generator = rng()
    factors = np.array([module.draw_factor(settings, generator) for _ in range(6000)])
    assert consistent(int((factors > 1).sum()), 6000, up)
    assert consistent(int((factors < 1).sum()), 6000, down)
    assert low <= factors.min() < low + 0.01 and high - 0.01 < factors.max() <= high
    below = factors[factors < 1]
    assert is_uniform(below, low, 1 - low)


def test_steps_come_in_the_published_order_as_often_as_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []
    qualities: list[float] = []
    sizes: list[tuple[int, int]] = []

    def watched(name: str) -> Callable[..., np.ndarray]:
        step = getattr(module, name)

        def call(image: np.ndarray, *rest: float, **named: Any) -> np.ndarray:
            steps.append(name[0])
            sizes.extend([named["size"]] if "size" in named else [])
            qualities.extend(rest if name == "jpeg" else ())
            return step(image, *rest, **named)  # type: ignore[no-any-return]

        return call

    for name in ("blur", "resize", "add_noise", "jpeg"):
        monkeypatch.setattr(module, name, watched(name))
    generator, draws, seen = rng(), 800, Counter()  # type: ignore[var-annotated]
    for _ in range(draws):
        steps.clear()
        degrade(ASTRONAUT, generator)
        order = "".join(steps)
        first, second = order[:4], order[4:]
        assert first == "braj"
        assert second.removeprefix("b") in ("rarbj", "rarj", "rajrb", "rajr")
        seen["second blur"] += second.startswith("b")
        seen["JPEG last"] += second.endswith("j")
        seen["final sinc"] += second.removeprefix("b") in ("rarbj", "rajrb")
    assert consistent(seen["second blur"], draws, 0.8)
    assert consistent(seen["JPEG last"], draws, 0.5)
    assert consistent(seen["final sinc"], draws, 0.8)
    assert is_uniform(qualities, 30, 65)
    assert set(sizes[1::2]) == {(56, 56)}
    second = np.array(sizes[::2])
    assert second.min() in (16, 17, 18) and second.max() in (65, 66, 67)  # 0.3 x 56, 1.2 x 56
    assert consistent(int((second[:, 0] == 56).sum()), draws, 0.3 + 0.3 / 0.2 / 56)


@pytest.mark.parametrize(
    ("settings", "sigma", "scale"), [(FIRST, (1, 30), (0.05, 3)), (SECOND, (1, 25), (0.05, 2.5))]
)
def test_kinds_of_noise_come_as_often_as_published(
    settings: Round,
    sigma: tuple[float, float],
    scale: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, list[tuple[float, bool]]] = {"gaussian_noise": [], "poisson_noise": []}
    for name, seen in drawn.items():
        monkeypatch.setattr(
            module,
            name,
            lambda _, strength, gray, rng, seen=seen: seen.append((strength, gray)) or 0,
        )
    generator, image = rng(), np.zeros((1, 1, 3), np.float32)
    for _ in range(4000):
        module.add_noise(image, settings, generator)
    assert consistent(len(drawn["gaussian_noise"]), 4000, 0.5)
    assert consistent(sum(gray for seen in drawn.values() for _, gray in seen), 4000, 0.4)
    for name, (low, high) in (("gaussian_noise", sigma), ("poisson_noise", scale)):
        strengths = [strength for strength, _ in drawn[name]]
        assert is_uniform(strengths, low, high - low)


# Each step ----------------------------------------------------------------------------------------


def test_blur_reflects_and_correlates_as_upstream() -> None:
    image = rng().random((30, 41, 3), np.float32)
    kernel = rng(1).random((21, 21))  # not symmetric
    picture = torch.from_numpy(image).permute(2, 0, 1)[:, None].double()
    padded = F.pad(picture, (10, 10, 10, 10), mode="reflect")
    expected = F.conv2d(padded, torch.from_numpy(kernel)[None, None])[:, 0].permute(1, 2, 0)
    np.testing.assert_allclose(module.blur(image, kernel), expected.numpy(), rtol=1e-5)
    assert module.blur(image[:8, :8], kernel / kernel.sum()).shape == (8, 8, 3)  # below its radius


@pytest.mark.parametrize("gray", [True, False])
def test_gaussian_noise_has_its_deviation(gray: bool) -> None:
    noise = module.gaussian_noise((300, 300, 3), 20.0, gray, rng())
    assert noise.dtype == np.float32 and noise.shape == (300, 300, 1 if gray else 3)
    assert noise.std() * 255 == pytest.approx(20, rel=0.02) and abs(noise.mean()) < 1e-3
    assert follows(noise[..., 0].ravel()[::10] * 255 / 20, "norm")
    if not gray:
        assert abs(np.corrcoef(noise.reshape(-1, 3).T)[0, 1]) < 0.02


@pytest.mark.parametrize("gray", [True, False])
def test_poisson_noise_grows_with_light(gray: bool) -> None:
    levels = np.linspace(10, 240, 200).round() / 255  # 200 values: 256 photons at full brightness
    image = np.tile(levels.astype(np.float32)[None, :, None], (2000, 1, 3))
    noise = module.poisson_noise(image, 2.0, gray, rng())
    assert noise.shape == (2000, 200, 1 if gray else 3)
    assert abs(noise.mean()) < 1e-3
    expected = 2.0 * np.sqrt(levels / 256)  # a Poisson number's variance is its mean
    np.testing.assert_allclose(noise[..., 0].std(0), expected, rtol=0.1)
    few = module.poisson_noise(np.full((400, 400, 3), 0.5, np.float32), 1.0, False, rng())
    assert few.var() == pytest.approx(0.5, rel=0.05)  # one distinct value: one photon


@pytest.mark.parametrize("quality", [30, 62, 95])
def test_jpeg_is_jpeg(quality: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(ASTRONAUT).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer)).astype(int)
    found = module.jpeg(ASTRONAUT.astype(np.float32) / 255, quality + 0.3) * 255
    # The same standard through another library: only the round-off of transforms differs.
    assert np.abs(found - expected).mean() < 0.5
    assert np.abs(found - ASTRONAUT).mean() > 1


@pytest.mark.parametrize("mode", module.RESIZE_MODES)
def test_resizes_keep_flat_pictures_flat_and_are_not_antialiased(mode: str) -> None:
    flat = np.full((56, 56, 3), 0.25, np.float32)
    assert module.resize(flat, mode, factor=0.4).shape == (22, 22, 3)
    np.testing.assert_allclose(module.resize(flat, mode, size=(71, 60)), 0.25, rtol=1e-6)
    fine = np.indices((56, 56)).sum(0) % 2
    chequers = np.repeat(fine[..., None], 3, axis=2).astype(np.float32)
    smaller = module.resize(chequers, mode, size=(8, 8))
    assert smaller.std() < 0.05 if mode == "area" else smaller.std() > 0.4
    ramp = np.tile(np.linspace(0, 1, 56, dtype=np.float32)[None, :, None], (56, 1, 3))
    assert (np.diff(module.resize(ramp, mode, factor=1.5)[0, :, 0]) > -1e-6).all()


# The whole ----------------------------------------------------------------------------------------


def test_degraded_patches_keep_size_and_kind_and_the_input() -> None:
    before, generator = ASTRONAUT.copy(), rng()
    for _ in range(50):
        degraded = degrade(ASTRONAUT, generator)
        assert degraded.shape == (56, 56, 3) and degraded.dtype == np.uint8
        assert (degraded != ASTRONAUT).any()
    assert (before == ASTRONAUT).all()


def test_degradation_is_a_function_of_the_generator() -> None:
    drawn = [degrade(ASTRONAUT, rng([0, 1, i])).tobytes() for i in range(20)]
    assert drawn == [degrade(ASTRONAUT, rng([0, 1, i])).tobytes() for i in range(20)]
    assert len(set(drawn)) == 20


def test_degradation_keeps_brightness_and_destroys_detail() -> None:
    generator = rng()
    degraded = np.stack([degrade(ASTRONAUT, generator) for _ in range(300)]).astype(float)
    assert abs(degraded.mean((0, 1, 2)) - ASTRONAUT.mean((0, 1))).max() < 4
    # Averaged over draws noise is gone and blur remains.
    clean, blurred = (
        np.abs(np.diff(x, axis=0)).mean() for x in (ASTRONAUT.astype(float), degraded.mean(0))
    )
    assert 0.3 * clean < blurred < 0.8 * clean
