"""ICC profiles written by hand for tests, and the conversion to sRGB in floating point.

Nothing here uses the product's own `lasr.pictures.profiles`.
"""

import itertools
import struct
from collections.abc import Callable

import numpy as np

Triple = tuple[float, float, float]
White = (0.9642, 1.0, 0.8249)  # D50 as ICC profiles have it


def colorants(*points: float) -> tuple[Triple, Triple, Triple]:
    """Of the chromaticities of red, green and blue (x, y each), from D65 to D50 by Bradford."""
    xyz = [
        np.array([x / y, 1, (1 - x - y) / y])
        for x, y in zip(points[::2], points[1::2], strict=True)
    ]
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = np.array(xyz).T
    columns = columns @ np.diag(np.linalg.inv(columns) @ white)
    cone = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    adapted = np.linalg.inv(cone) @ np.diag((cone @ White) / (cone @ white)) @ cone @ columns
    red, green, blue = (tuple(map(float, column)) for column in adapted.T)
    return red, green, blue  # type: ignore[return-value]


SRGB = colorants(0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE = colorants(0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3 = colorants(0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
# ROMM RGB has the white of D50 (published, Lindbloom).
PROPHOTO = (
    (0.7976749, 0.2880402, 0.0),
    (0.1351917, 0.7118741, 0.0),
    (0.0313534, 0.0000857, 0.8249),
)


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: Triple) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_number, values))


def _description(text: str) -> bytes:
    name = text.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(4 + 4 + 2 + 1 + 67)


def curve(function: float | Callable[[np.ndarray], np.ndarray]) -> bytes:
    """A gamma as a number, or a function as a table of 4096 entries."""
    if not callable(function):
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(function * 256)) + b"\0\0"
    table = np.rint(function(np.linspace(0, 1, 4096)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", 4096) + table.tobytes()


def _profile(
    space: bytes, name: str, tags: dict[str, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr"
) -> bytes:
    tags = {"desc": _description(name), "cprt": b"text\0\0\0\0none\0", "wtpt": _xyz(White)} | tags
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag.encode() + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, kind, space, pcs)
    head += (
        struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
        + b"acsp"
        + bytes(28)
        + b"".join(map(_number, White))
    )
    return head.ljust(128, b"\0") + table + body


def rgb(
    colorants: tuple[Triple, Triple, Triple], gamma: float | Callable, name: str = "Test RGB"
) -> bytes:
    """A display profile of colorants (red, green, blue) and one curve."""
    tags = dict(zip(("rXYZ", "gXYZ", "bXYZ"), map(_xyz, colorants), strict=True))
    tags |= dict.fromkeys(("rTRC", "gTRC", "bTRC"), curve(gamma))
    return _profile(b"RGB ", name, tags)


def grey(gamma: float | Callable, name: str = "Test grey") -> bytes:
    """A display profile of grey."""
    return _profile(b"GRAY", name, {"kTRC": curve(gamma)})


def cmyk() -> bytes:
    """An output profile of CMYK: a table of 4^4 colours in CIELAB, inks a little impure."""
    corners = np.array(list(itertools.product(np.linspace(0, 1, 4), repeat=4)))
    light = 1 - corners[:, :3] @ np.array([[0.9, 0.15, 0.1], [0.1, 0.85, 0.2], [0.0, 0.1, 0.9]])
    linear = np.clip(light, 0.02, 1) ** 2.2 * (1 - 0.95 * corners[:, 3:])
    lab = _lab_from_xyz(linear @ np.array(SRGB))
    encoded = np.empty_like(lab)
    encoded[:, 0] = lab[:, 0] / 100 * 65280  # version 2: 0xFF00 is 100
    encoded[:, 1:] = (lab[:, 1:] + 128) * 256
    data = b"mft2\0\0\0\0" + bytes([4, 3, 4, 0]) + b"".join(map(_number, np.eye(3).ravel()))
    data += struct.pack(">HH", 2, 2) + struct.pack(">8H", *[0, 65535] * 4)
    data += np.rint(encoded).clip(0, 65535).astype(">u2").tobytes() + struct.pack(
        ">6H", *[0, 65535] * 3
    )
    return _profile(b"CMYK", "Test press", {"A2B0": data}, b"Lab ", b"prtr")


def _lab_from_xyz(xyz: np.ndarray) -> np.ndarray:
    t = xyz / np.array(White)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def srgb_decode(value: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: to linear light."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_encode(light: np.ndarray) -> np.ndarray:
    """The inverse, clipped to [0, 1]."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def lightness(value: np.ndarray) -> np.ndarray:
    """The curve of a grey whose values are L*."""
    f = (100 * value + 16) / 116
    return np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))


def to_srgb(
    value: np.ndarray, colorants: tuple[Triple, ...], gamma: float | Callable
) -> np.ndarray:
    """H x w x 3 in [0, 1] → sRGB, by the formulas of a matrix profile in float64."""
    linear = gamma(value) if callable(gamma) else value**gamma
    return srgb_encode(linear @ np.array(colorants) @ np.linalg.inv(np.array(SRGB)))


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB of D50, h x w x 3 → sRGB in [0, 1]."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    t = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return srgb_encode((t * np.array(White)) @ np.linalg.inv(np.array(SRGB)))
