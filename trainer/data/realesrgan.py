"""Real-ESRGAN's two-stage degradation model, applied to LR patches (table 5).

Blur, resize, noise and JPEG, twice, then a sinc filter, drawn as published: options/
train_realesrgan_x4plus.yml, realesrgan/data/realesrgan_dataset.py and realesrgan/models/
realesrgan_model.py of github.com/xinntao/Real-ESRGAN. Differences:
- The size is preserved: the second resize is relative to the patch, as upstream at scale 1.
- Every patch draws for itself. Upstream draws the resizes, the kind of noise and the last order
  once per batch, and compensates by mixing batches in a pool.
- JPEG is libjpeg's, of 8-bit pixels and integer quality; upstream imitates it on float tensors. So
  the edges of a patch whose sides are no multiple of 16 are repeated and not black.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

Range = tuple[float, float]

# kernel_list of the options file
KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
KERNEL_SIZES = range(7, 22, 2)  # kernel_range in realesrgan_dataset.py
RESIZE_MODES = ("area", "bilinear", "bicubic")  # realesrgan_model.py
FINAL_SINC_PROB = 0.8  # final_sinc_prob


@dataclass(frozen=True)
class Round:
    """Parameters of one of the two rounds, named as in the options file; defaults: the first."""

    blur_prob: float = 1.0  # the first blur is unconditional in realesrgan_model.py
    kernel_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of each of KINDS
    sinc_prob: float = 0.1  # of a sinc kernel instead
    blur_sigma: Range = (0.2, 3)  # pixels
    betag_range: Range = (0.5, 4)  # exponent of generalized Gaussians
    betap_range: Range = (1, 2)  # exponent of plateaus
    resize_prob: tuple[float, ...] = (0.2, 0.7, 0.1)  # up, down, keep
    resize_range: Range = (0.15, 1.5)  # factor: down from the first to 1, up from 1 to the second
    gaussian_noise_prob: float = 0.5  # else Poisson
    noise_range: Range = (1, 30)  # standard deviation of Gaussian noise, in 1/255
    poisson_scale_range: Range = (0.05, 3)  # factor on Poisson noise
    gray_noise_prob: float = 0.4  # of the same noise in all three channels
    jpeg_range: Range = (30, 95)  # quality


FIRST = Round()
SECOND = Round(
    blur_prob=0.8,  # second_blur_prob
    blur_sigma=(0.2, 1.5),
    resize_prob=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    noise_range=(1, 25),
    poisson_scale_range=(0.05, 2.5),
)


def degrade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a degraded copy of h x w x 3 uint8 RGB pixels, of the same size."""
    height, width = pixels.shape[:2]
    image = pixels.astype(np.float32) / 255
    image = blur(image, draw_kernel(FIRST, rng))
    image = resize(image, draw_mode(rng), factor=draw_factor(FIRST, rng))
    image = add_noise(image, FIRST, rng)
    image = jpeg(image, rng.uniform(*FIRST.jpeg_range))

    if rng.random() < SECOND.blur_prob:
        image = blur(image, draw_kernel(SECOND, rng))
    factor = draw_factor(SECOND, rng)
    image = resize(image, draw_mode(rng), size=(int(height * factor), int(width * factor)))
    image = add_noise(image, SECOND, rng)

    quality = rng.uniform(*SECOND.jpeg_range)
    jpeg_last = rng.random() < 0.5
    if not jpeg_last:
        image = jpeg(image, quality)
    image = resize(image, draw_mode(rng), size=(height, width))
    if rng.random() < FINAL_SINC_PROB:
        image = blur(image, sinc(draw_size(rng), rng.uniform(np.pi / 3, np.pi)))
    if jpeg_last:
        image = jpeg(image, quality)
    return to_bytes(image)


def draw_kernel(settings: Round, rng: np.random.Generator) -> np.ndarray:
    """Draw a blur kernel of a round: sinc, or one of KINDS."""
    size = draw_size(rng)
    if rng.random() < settings.sinc_prob:
        return sinc(size, rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))
    kind = KINDS[rng.choice(len(KINDS), p=settings.kernel_prob)]
    sigma_x = sigma_y = rng.uniform(*settings.blur_sigma)
    angle = 0.0
    if kind.endswith("aniso"):
        sigma_y, angle = rng.uniform(*settings.blur_sigma), rng.uniform(-np.pi, np.pi)
    form = quadratic_form(size, sigma_x, sigma_y, angle)
    if kind.startswith("generalized"):
        return generalized_gaussian(form, draw_beta(settings.betag_range, rng))
    if kind.startswith("plateau"):
        return plateau(form, draw_beta(settings.betap_range, rng))
    return gaussian(form)


def draw_size(rng: np.random.Generator) -> int:
    """Draw the side of a kernel: odd, 7 to 21 pixels."""
    return int(rng.choice(KERNEL_SIZES))


def draw_beta(within: Range, rng: np.random.Generator) -> float:
    """Draw an exponent: below 1 and above 1 with equal probability, as upstream."""
    low, high = within
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


def draw_factor(settings: Round, rng: np.random.Generator) -> float:
    """Draw the factor of a resize: up, down or 1."""
    low, high = settings.resize_range
    ranges = ((1.0, high), (low, 1.0), (1.0, 1.0))
    return rng.uniform(*ranges[rng.choice(3, p=settings.resize_prob)])


def draw_mode(rng: np.random.Generator) -> str:
    """Draw the interpolation of a resize."""
    return RESIZE_MODES[rng.integers(len(RESIZE_MODES))]


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate h x w x 3 float32 with a kernel; borders are reflected."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize(
    image: np.ndarray, mode: str, size: tuple[int, int] | None = None, factor: float | None = None
) -> np.ndarray:
    """Resize h x w x 3 float32 to `size` (height, width) or by a factor, without antialiasing."""
    picture = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(picture, size=size, scale_factor=factor, mode=mode)
    array: np.ndarray = resized[0].permute(1, 2, 0).numpy()
    return array


def add_noise(image: np.ndarray, settings: Round, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian or Poisson noise, in colour or grey, and clamp to [0, 1]."""
    gray = rng.random() < settings.gray_noise_prob
    if rng.random() < settings.gaussian_noise_prob:
        noise = gaussian_noise(image.shape, rng.uniform(*settings.noise_range), gray, rng)
    else:
        noise = poisson_noise(image, rng.uniform(*settings.poisson_scale_range), gray, rng)
    noisy: np.ndarray = np.clip(image + noise, 0, 1)
    return noisy


def gaussian_noise(
    shape: tuple[int, ...], sigma: float, gray: bool, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise, h x w x 3 float32, or h x w x 1 if gray. sigma: in units of 1/255."""
    channels = 1 if gray else shape[2]
    drawn = rng.standard_normal((*shape[:2], channels), dtype=np.float32)
    return drawn * np.float32(sigma / 255)


def poisson_noise(
    image: np.ndarray, scale: float, gray: bool, rng: np.random.Generator
) -> np.ndarray:
    """Shot noise of an image in [0, 1], times `scale`, shaped as `gaussian_noise`.

    As upstream, the number of photons at full brightness is the number of distinct values in the
    8-bit image, rounded up to a power of 2.
    """
    if gray:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    levels = to_bytes(image)
    photons = 2 ** np.ceil(np.log2(len(np.unique(levels))))
    clean = levels.astype(np.float32) / 255
    noise = rng.poisson(clean * photons).astype(np.float32) / np.float32(photons) - clean
    scaled: np.ndarray = noise * np.float32(scale)
    return scaled


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """Encode h x w x 3 float32 RGB as JPEG (4:2:0) and decode it."""
    bgr = np.ascontiguousarray(to_bytes(image)[..., ::-1])
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None  # it was just encoded
    return decoded.astype(np.float32) / 255


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], clamped, as uint8."""
    rounded: np.ndarray = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return rounded


def gaussian(form: np.ndarray) -> np.ndarray:
    """exp(-q / 2) for a quadratic form q."""
    return _normalised(np.exp(-0.5 * form))


def generalized_gaussian(form: np.ndarray, beta: float) -> np.ndarray:
    """exp(-q^beta / 2): a Gaussian for beta = 1, more pointed below, flatter above."""
    return _normalised(np.exp(-0.5 * form**beta))


def plateau(form: np.ndarray, beta: float) -> np.ndarray:
    """1 / (1 + q^beta): a flat top and long tails."""
    return _normalised(1 / (1 + form**beta))


def quadratic_form(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0) -> np.ndarray:
    """Squared distance from the centre in standard deviations, along axes rotated by `angle`."""
    axis = np.arange(size) - size // 2
    x, y = np.meshgrid(axis, axis)
    along, across = (
        np.cos(angle) * x + np.sin(angle) * y,
        np.cos(angle) * y - np.sin(angle) * x,
    )
    form: np.ndarray = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    return form


def sinc(size: int, cutoff: float) -> np.ndarray:
    """The ideal circular low-pass filter on a square: it causes ringing, as sharpening does.

    cutoff: in radians per pixel, at most pi. k(r) = cutoff / (2 pi r) J1(cutoff r), equation (6).
    """
    axis = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(axis, axis))
    centre = size // 2, size // 2
    radius[centre] = 1.0  # any number: the limit for r -> 0 replaces it below
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    kernel = cutoff * bessel / (2 * np.pi * radius)
    kernel[centre] = cutoff**2 / (4 * np.pi)
    return _normalised(kernel)


def _normalised(kernel: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = kernel / kernel.sum()
    return normalised
