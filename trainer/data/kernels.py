"""Blur kernels of Real-ESRGAN (Wang et al. 2021, section 3.1; `basicsr/data/degradations.py`).

All are float64 arrays of odd size x size that sum to 1. Standard deviations are in pixels, angles
in radians from x (columns) towards y (rows).
"""

import numpy as np
import torch


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
