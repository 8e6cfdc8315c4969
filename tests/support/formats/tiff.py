"""TIFF files of every kind, written by hand and by tifffile."""

import io
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tifffile

from tests.support import files, icc
from tests.support.formats.table import (
    CMYK_ICC,
    GREY_ICC,
    GREY_PROFILES,
    ICC,
    ORIENTED,
    RGB_PROFILES,
    Case,
    Expected,
    H,
    W,
    cases,
    closeness,
    depth,
    grey_through,
    samples,
    through,
    through_lcms,
)


def tiff_by_hand(
    photometric: int, bits: int, extras: tuple[int, ...] = (), profile: str | None = None,
    order: str = "<", planar: bool = False, orientation: int = 1, tell: bool = True,
) -> Case:  # fmt: skip
    """photometric: 0, 1 grey, 2 RGB, 3 palette, 5 CMYK."""
    count = {2: 3, 5: 4}.get(photometric, 1)
    stored = samples(count + len(extras), bits)
    colours, largest, tags = stored[..., :count], 2**bits - 1, {}
    alpha = None
    if 1 in extras or 2 in extras:
        number = next(n for n, kind in enumerate(extras) if kind)
        alpha = stored[..., count + number] / largest
        if extras[number] == 1:  # as premultiplied
            colours = np.rint(colours * alpha[..., None]).astype(stored.dtype)
            stored[..., :count] = colours
    straight = colours / largest
    if 1 in extras:
        opacity = np.maximum(alpha, 1e-9)[..., None]
        straight = np.where(alpha[..., None] > 0, np.minimum(straight / opacity, 1), 0)
    grey = photometric in (0, 1)
    space_profile = None
    if photometric == 3:
        table = samples(3, 16).reshape(-1, 3)[: 2**bits]
        tags["t320"] = tuple(map(int, table.T.ravel()))
        value = (table >> 8)[stored[..., 0]] / 255
    elif photometric == 5:
        value = (1 - straight[..., :3]) * (1 - straight[..., 3:])
        if profile:
            space_profile = CMYK_ICC
            value = through_lcms(np.rint(straight * 255).astype(np.uint8), "CMYK", CMYK_ICC)
    else:
        value = 1 - straight if photometric == 0 else straight
        value = value.repeat(3, axis=2) if grey else value
    if profile and photometric != 5:
        space_profile = GREY_ICC[profile] if grey else ICC[profile]
        value = (grey_through if grey else through)(value, profile)
    if space_profile:
        tags["t34675"] = space_profile
    if extras and tell:
        tags["t338"] = extras
    if orientation > 1:
        tags["t274"] = orientation
    content = files.tiff(stored, bits, order, planar, t262=photometric, **tags)
    turn = ORIENTED[orientation]
    colour_bits = 8 if photometric == 3 else bits
    close = closeness(profile, colour_bits)
    if photometric == 5:
        close = 2.5 if profile else close + 1 / 257  # the reference has 8 bits; two roundings
    alpha = None if alpha is None else turn(alpha)
    return content, Expected(turn(value), depth(colour_bits), alpha, close)


@cases
def tiffs_by_hand() -> Iterator[tuple[str, Callable[[], Case]]]:
    for photometric, bits, order in itertools.product((0, 1), (1, 2, 4, 8, 10, 12, 14, 16), "<>"):
        name = f"tiff-{'wb'[photometric]}0-{bits}-{'little' if order == '<' else 'big'}"
        yield name, lambda p=photometric, b=bits, o=order: tiff_by_hand(p, b, order=o)
    for photometric, bits, planar in itertools.product((2, 5), (8, 10, 12, 16), (False, True)):
        name = f"tiff-{photometric}-{bits}{'-planar' * planar}"
        yield name, lambda p=photometric, b=bits, q=planar: tiff_by_hand(p, b, planar=q, order=">")
    for bits in (1, 2, 4, 8):
        yield f"tiff-3-{bits}", lambda b=bits: tiff_by_hand(3, b)
    for photometric, bits, extras in itertools.product(
        (1, 2, 5), (8, 16), ((0,), (1,), (2,), (0, 2), (2, 0))
    ):
        name = f"tiff-{photometric}-{bits}-extras-{'-'.join(map(str, extras))}"
        yield (
            name,
            lambda p=photometric, b=bits, e=extras: tiff_by_hand(p, b, e, planar=e == (2, 0)),
        )
    for photometric, bits in itertools.product((1, 2), (8, 16)):  # the tag is missing: alpha
        name = f"tiff-{photometric}-{bits}-untold"
        yield name, lambda p=photometric, b=bits: tiff_by_hand(p, b, (2,), tell=False)
    for (photometric, bits, extras), turned in itertools.product(
        ((1, 8, ()), (1, 16, ()), (2, 8, (2,)), (2, 16, ()), (5, 8, ()), (3, 8, ()), (0, 1, ())),
        range(2, 9),
    ):
        name = f"tiff-{photometric}-{bits}-{len(extras)}-orientation-{turned}"
        yield (
            name,
            lambda p=photometric, b=bits, e=extras, o=turned: tiff_by_hand(p, b, e, orientation=o),
        )
    for bits, profile in itertools.product((8, 16), RGB_PROFILES):
        yield f"tiff-2-{bits}-icc-{profile}", lambda b=bits, p=profile: tiff_by_hand(2, b, (), p)
        yield (
            f"tiff-2-{bits}-alpha-icc-{profile}",
            lambda b=bits, p=profile: tiff_by_hand(2, b, (2,), p),
        )
    for profile in RGB_PROFILES:
        yield f"tiff-3-8-icc-{profile}", lambda p=profile: tiff_by_hand(3, 8, (), p)
    for photometric, bits, profile in itertools.product((0, 1), (8, 12, 16), GREY_PROFILES):
        name = f"tiff-{'wb'[photometric]}0-{bits}-icc-{profile}"
        yield name, lambda m=photometric, b=bits, p=profile: tiff_by_hand(m, b, (), p)
    for bits, extras in itertools.product((8, 16), ((), (2,))):
        name = f"tiff-5-{bits}-{len(extras)}-icc"
        yield name, lambda b=bits, e=extras: tiff_by_hand(5, b, e, "press")


def tiff_by_tifffile(
    dtype: str, channels: int, profile: str | None = None, **options: object
) -> Case:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        value = samples(channels, 16) / 65535
        stored, bits = value.astype(kind), 16
        value = stored.astype(np.float64)
    else:
        bits = kind.itemsize * 8 - (kind.kind == "i")
        value = samples(channels, min(bits, 32)) / (2 ** min(bits, 32) - 1)
        stored = np.rint(value * (2.0**bits - 1) * (1 - 1e-12)).astype(kind)
        value = stored / (2.0**bits - 1)
    file = io.BytesIO()
    options = {"photometric": "rgb" if channels > 2 else "minisblack", "metadata": None, **options}
    if options.get("planarconfig") == "separate":
        stored = np.moveaxis(stored, 2, 0)
    tifffile.imwrite(
        file, stored.squeeze(), iccprofile=ICC[profile] if profile else None, **options
    )
    value = value.repeat(3, axis=2) if channels == 1 else value
    deep = depth(bits)
    close = closeness(profile, deep)
    return file.getvalue(), Expected(through(value, profile), deep, None, max(close, 2 / 257))


@cases
def tiffs_by_tifffile() -> Iterator[tuple[str, Callable[[], Case]]]:
    for compression, (dtype, channels), predictor in itertools.product(
        ("lzw", "deflate", "packbits", "zstd", "lzma"),
        (("u1", 3), ("u2", 3), ("u2", 1)),
        (False, True),
    ):
        name = f"tiff-{compression}-{dtype}-{channels}{'-predictor' * predictor}"
        options = {"compression": compression, "predictor": predictor, "rowsperstrip": 5}
        yield name, lambda d=dtype, c=channels, o=options: tiff_by_tifffile(d, c, **o)
    for dtype, channels in itertools.product(("f2", "f4", "f8", "u4", "i4", "i2"), (1, 3)):
        yield f"tiff-{dtype}-{channels}", lambda d=dtype, c=channels: tiff_by_tifffile(d, c)
    for dtype in ("f4", "u4"):
        yield f"tiff-{dtype}-adobe", lambda d=dtype: tiff_by_tifffile(d, 3, "adobe")
    layouts: dict[str, dict[str, object]] = {
        "tiled": {"tile": (16, 16)},
        "tiled-planar": {"tile": (16, 16), "planarconfig": "separate"},
        "planar": {"planarconfig": "separate"},
        "big": {"bigtiff": True, "byteorder": ">"},
        "float-predictor": {"compression": "deflate", "predictor": 3},
    }
    for layout, options in layouts.items():
        for dtype in ("f2", "f4") if "float" in layout else ("u1", "u2", "f4"):
            yield f"tiff-{layout}-{dtype}", lambda d=dtype, o=options: tiff_by_tifffile(d, 3, **o)


def lab_case(photometric: int, bits: int) -> Case:
    y, x = np.mgrid[0:H, 0:W] / max(H, W)
    lab = np.stack([20 + 60 * x, 40 * y - 15, 30 * x - 15], axis=2)  # inside sRGB
    if bits == 8:
        lightness, offset, step = 255, 128, 1
    else:
        lightness, offset, step = (65535 if photometric == 8 else 65280), 32768, 256
    stored = np.empty((H, W, 3), np.int64)
    stored[..., 0] = np.rint(lab[..., 0] / 100 * lightness)
    stored[..., 1:] = np.rint(lab[..., 1:] * step)
    exact = np.stack(
        [stored[..., 0] / lightness * 100, stored[..., 1] / step, stored[..., 2] / step], axis=2
    )
    stored[..., 1:] += 0 if photometric == 8 else offset
    content = files.tiff((stored % 2**bits).astype(f"u{bits // 8}"), bits, t262=photometric)
    return content, Expected(icc.lab_to_srgb(exact), bits, None, closeness(True, bits))


@cases
def labs() -> Iterator[tuple[str, Callable[[], Case]]]:
    for photometric, bits in itertools.product((8, 9), (8, 16)):
        yield f"tiff-lab-{photometric}-{bits}", lambda p=photometric, b=bits: lab_case(p, b)
