"""The table of files in every format: what each file shows, and what writers of them share."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from tests.support import icc

H, W = 24, 32
RNG = np.random.default_rng(0)
ORIENTED: dict[
    int, Callable[[np.ndarray], np.ndarray]
] = {  # TIFF 6.0: what row 0 and column 0 show
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
RGB_PROFILES = {  # name → colorants and curve
    "adobe": (icc.ADOBE, 563 / 256),
    "p3": (icc.P3, icc.srgb_decode),
    "prophoto": (icc.PROPHOTO, 461 / 256),
    "linear": (icc.SRGB, 1.0),
    "gbr": ((icc.SRGB[1], icc.SRGB[2], icc.SRGB[0]), icc.srgb_decode),
    "srgb": (icc.SRGB, icc.srgb_decode),
}
# Names say nothing: these call themselves sRGB, the last does not.
NAMES = {"linear": "sRGB linear", "gbr": "sRGB IEC61966-2.1", "srgb": "Camera"}
ICC = {name: icc.rgb(*values, NAMES.get(name, name)) for name, values in RGB_PROFILES.items()}
GREY_PROFILES = {"1.0": 1.0, "1.8": 461 / 256, "2.2": 563 / 256, "lightness": icc.lightness}
GREY_ICC = {name: icc.grey(gamma) for name, gamma in GREY_PROFILES.items()}
CMYK_ICC = icc.cmyk()
PALETTE = np.random.default_rng(9).integers(0, 256, (256, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Expected:
    """What a file shows: h x w x 3 in [0, 1]; alpha likewise; bits of the pixels; the tolerance."""

    pixels: np.ndarray
    bits: int = 8
    alpha: np.ndarray | None = None
    close: float = 1.0  # of 255


Case = tuple[bytes, Expected]
CASES: dict[str, Callable[[], Case]] = {}


def cases(generator: Callable[[], Iterator[tuple[str, Callable[[], Case]]]]) -> None:
    for name, build in generator():
        assert name not in CASES, name
        CASES[name] = build


def samples(channels: int, bits: int) -> np.ndarray:
    """H x w x c integers of that many bits: ramps in other directions, and noise."""
    y, x = np.mgrid[0:H, 0:W] / max(H, W)
    planes = np.stack([x, y, 1 - x, (x + y) / 2, 1 - y, (x + 1 - y) / 2][:channels], axis=2)
    noisy = np.clip(planes + np.random.default_rng(bits).normal(0, 0.1, planes.shape), 0, 1)
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    return np.rint(noisy * (2**bits - 1)).astype(dtype)


def shown(stored: np.ndarray, bits: int) -> np.ndarray:
    """Samples in [0, 1], grey as RGB."""
    value = stored / (2**bits - 1)
    return value.repeat(3, axis=2) if value.shape[2] == 1 else value


def through(value: np.ndarray, name: str | None) -> np.ndarray:
    return value if name is None else icc.to_srgb(value, *RGB_PROFILES[name])


def grey_through(value: np.ndarray, name: str | None) -> np.ndarray:
    if name is None:
        return value
    gamma = GREY_PROFILES[name]
    return icc.srgb_encode(gamma(value) if callable(gamma) else value**gamma)


def depth(bits: int) -> int:
    return 8 if bits <= 8 else 16


def closeness(profile: object, bits: int) -> float:
    """1 of 255, 2 through a profile; at 16 bit 1 and 64 of 65535."""
    if bits <= 8:
        return 2.0 if profile else 1.0
    return (64 if profile else 1) / 257


def through_lcms(stored: np.ndarray, mode: str, profile: bytes) -> np.ndarray:
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    image = Image.fromarray(stored.squeeze(), mode if mode == "CMYK" else None)
    return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB")) / 255


def iccp(profile: bytes) -> tuple[bytes, bytes]:
    import zlib

    return b"iCCP", b"any\0\0" + zlib.compress(profile)
