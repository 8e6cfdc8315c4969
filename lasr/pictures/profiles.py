"""ICC profiles built from numbers: chromaticities and a curve, as PNG, TIFF and BMP state them.

ICC.1:2022. A profile is a header, a table of tags and their data. Colorants are adapted to the
profile connection space's white, D50, by the Bradford transform.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lasr.pictures.samples import NotSupported

# White, red, green, blue: x and y.
Points = tuple[float, float, float, float, float, float, float, float]
Curve = tuple[float, ...]  # parameters g, a, b, c, d of (a x + b)^g above d and c x below; or g

_D65 = (0.3127, 0.3290)
SRGB_POINTS: Points = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_ADOBE_POINTS: Points = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_REC709: Curve = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)

_PRIMARIES: dict[int, Points] = {  # ITU-T H.273, table 2
    1: SRGB_POINTS,
    2: SRGB_POINTS,  # unspecified
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_TRANSFERS: dict[int, Curve] = {  # table 3
    1: _REC709,
    2: SRGB_CURVE,  # unspecified
    4: (2.2,),
    5: (2.8,),
    6: _REC709,
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0912),
    8: (1.0,),
    13: SRGB_CURVE,
    14: _REC709,
    15: _REC709,
}
_HDR = {16: "PQ", 18: "HLG"}

_SRGB_EXPONENT = 1 / 2.2  # what writers put into gAMA for sRGB
_NEAR = 0.005  # of an exponent or a chromaticity: closer counts as sRGB's

_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])


def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """The profile of code points of ITU-T H.273, as in PNG's cICP and AVIF's nclx; None: sRGB.

    Raises NotSupported: an HDR transfer function, or codes without a definition here.
    """
    if transfer in _HDR:
        raise NotSupported(f"an HDR picture ({_HDR[transfer]}); save it in SDR, such as sRGB")
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise NotSupported(
            f"colour primaries {primaries} with transfer function {transfer} (H.273)"
        )
    points, curve = _PRIMARIES[primaries], _TRANSFERS[transfer]
    if points == SRGB_POINTS and curve == SRGB_CURVE:
        return None
    return rgb_profile(points, curve)


def gamma_profile(exponent: float | None, points: Sequence[float] | None) -> bytes | None:
    """The profile of PNG's gAMA and cHRM; None: sRGB, or neither is there.

    exponent: of the encoding. 1/2.2 is what writers of sRGB state, so it means sRGB's curve.
    points: white, red, green and blue; points that span no colour space are passed over.
    """
    usual = not exponent or abs(exponent - _SRGB_EXPONENT) < _NEAR
    if points is None or max(map(abs, np.subtract(points, SRGB_POINTS))) < _NEAR:
        points = SRGB_POINTS
    if usual and tuple(points) == SRGB_POINTS:
        return None
    curve = SRGB_CURVE if usual else (1 / (exponent or _SRGB_EXPONENT),)
    try:
        return rgb_profile(points, curve)
    except ValueError:
        return None if usual else rgb_profile(SRGB_POINTS, curve)


@lru_cache(maxsize=16)
def _cached(points: tuple[float, ...], curve: Curve, name: str) -> bytes:
    rgb_to_xyz, adapt = _matrices(points)
    xyz = [_tag_xyz(adapt @ rgb_to_xyz[:, n]) for n in range(3)]
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), xyz, strict=True))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tag_curve(curve))
    chad = b"sf32\0\0\0\0" + b"".join(map(_fixed, adapt.ravel()))
    return _profile(b"RGB ", name, tags | {b"chad": chad})


def rgb_profile(points: Sequence[float], curve: Curve, name: str = "RGB") -> bytes:
    """A display profile. points: white, red, green, blue. Raises ValueError: no colour space."""
    return _cached(tuple(points), curve, name)


def table_profile(points: Sequence[float], tables: Sequence[np.ndarray]) -> bytes:
    """As `rgb_profile` with one table of uint16 per channel, 0 to 65535 in linear light."""
    rgb_to_xyz, adapt = _matrices(points)
    tags = {}
    for n, (letter, table) in enumerate(zip("rgb", tables, strict=True)):
        tags[f"{letter}XYZ".encode()] = _tag_xyz(adapt @ rgb_to_xyz[:, n])
        curve = struct.pack(">I", len(table)) + np.asarray(table, ">u2").tobytes()
        tags[f"{letter}TRC".encode()] = b"curv\0\0\0\0" + curve
    return _profile(b"RGB ", "RGB", tags)


def adobe_profile() -> bytes:
    """Adobe RGB (1998), which cameras mark by an EXIF tag alone."""
    return rgb_profile(_ADOBE_POINTS, (563 / 256,), "Adobe RGB (1998) compatible")


def srgb_profile() -> bytes:
    """SRGB for RGB pictures, 600 bytes, the same on each call."""
    return rgb_profile(SRGB_POINTS, SRGB_CURVE, "sRGB")


@lru_cache(maxsize=1)
def grey_profile() -> bytes:
    """Grey with sRGB's curve."""
    return _profile(b"GRAY", "Grey with the sRGB curve", {b"kTRC": tag_curve(SRGB_CURVE)})


def tag_curve(curve: Curve) -> bytes:
    """A parametricCurveType of one or five parameters."""
    kind = 0 if len(curve) == 1 else 3
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, curve))


def _matrices(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Linear RGB to XYZ with the points' own white, and the adaptation of that white to D50."""
    xy = np.asarray(points, np.float64).reshape(4, 2)
    with np.errstate(all="ignore"):
        white, *columns = np.stack([xy[:, 0], xy[:, 1], 1 - xy.sum(axis=1)], 1) / xy[:, 1:]
        primaries = np.stack(columns, axis=1)
        if not np.isfinite(xy / xy[:, 1:]).all() or abs(np.linalg.det(primaries)) < 1e-4:
            raise ValueError("the chromaticities span no colour space")
        rgb_to_xyz = primaries * np.linalg.solve(primaries, white)
        gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    return rgb_to_xyz, np.linalg.solve(_BRADFORD, gains[:, None] * _BRADFORD)


def _profile(space: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = {b"desc": _tag_text(name), b"cprt": _tag_text("CC0"), b"wtpt": _tag_xyz(_D50)}
    tags = text | tags
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    offsets: dict[bytes, int] = {}  # tags with the same data share it
    for tag, data in tags.items():
        if data not in offsets:
            offsets[data] = start + len(body)
            body += data + bytes(-len(data) % 4)
        table += tag + struct.pack(">II", offsets[data], len(data))
    # Size, no preferred module, version 4.4, display, colour space, XYZ, 2026-01-01, magic number.
    header = struct.pack(">I4xI4s4s4s", start + len(body), 0x04400000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += b"".join(map(_fixed, _D50))
    return header.ljust(128, b"\0") + table + body


def _tag_xyz(xyz: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, xyz))


def _tag_text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(encoded), 28) + encoded


def _fixed(value: float) -> bytes:
    return struct.pack(">i", int(np.clip(round(value * 65_536), -(2**31), 2**31 - 1)))
