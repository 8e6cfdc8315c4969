"""Hundreds of files, one for each combination of format, depth, layout, profile and orientation.

Each is compared with the pixels that were written, converted by formulas in float64 or by
LittleCMS; no reference comes from the reader itself.
"""

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageCms

from lasr.pictures.read import LARGEST, decode_picture, limited
from tests.support import files, icc

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


PALETTE = np.random.default_rng(9).integers(0, 256, (256, 3), dtype=np.uint8)
PNG_KINDS = [
    *((0, bits) for bits in (1, 2, 4, 8, 16)), *((3, bits) for bits in (1, 2, 4, 8)),
    (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16),
]  # fmt: skip


def png_case(
    kind: int,
    bits: int,
    profile: str | None,
    transparent: bool,
    interlaced: bool,
    orientation: int = 1,
) -> Case:
    stored = samples(files.CHANNELS[kind], bits)
    before, alpha = [], None
    grey = kind in (0, 4)
    if profile:
        before.append(iccp(GREY_ICC[profile] if grey else ICC[profile]))
    if kind == 3:
        colours = PALETTE[: 2**bits]
        before.append((b"PLTE", colours.tobytes()))
        value, colour_bits = colours[stored[..., 0]] / 255, 8
        if transparent:
            opacity = np.array([0, 100, 200], np.uint8)[: 2**bits]
            before.append((b"tRNS", opacity.tobytes()))
            alpha = np.append(opacity, np.full(256, 255))[stored[..., 0]] / 255
    else:
        count = 1 if grey else 3
        value, colour_bits = shown(stored[..., :count], bits), bits
        if kind in (4, 6):
            alpha = stored[..., -1] / (2**bits - 1)
        elif transparent:
            before.append((b"tRNS", stored[5, 7].astype(">u2").tobytes()))
            alpha = 1.0 - (stored == stored[5, 7]).all(axis=2)
    if orientation > 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        before.append((b"eXIf", exif.tobytes()[6:]))
    content = files.png(stored, kind, bits, before, interlaced)
    value = (grey_through if grey else through)(value, profile)
    turn = ORIENTED[orientation]
    alpha = None if alpha is None else turn(alpha)
    return content, Expected(
        turn(value), depth(colour_bits), alpha, closeness(profile, colour_bits)
    )


@cases
def pngs() -> Iterator[tuple[str, Callable[[], Case]]]:
    for (kind, bits), transparent, interlaced in itertools.product(PNG_KINDS, (0, 1), (0, 1)):
        if not (transparent and kind in (4, 6)):
            name = f"png-{kind}-{bits}{'-trns' * transparent}{'-interlaced' * interlaced}"
            yield (
                name,
                lambda k=kind, b=bits, t=transparent, i=interlaced: png_case(k, b, None, t, i),
            )
    for kind, bits in PNG_KINDS:
        if bits < 8 and kind != 3:
            continue
        for profile in GREY_PROFILES if kind in (0, 4) else RGB_PROFILES:
            transparent = kind in (2, 3)
            name = f"png-{kind}-{bits}-icc-{profile}"
            yield name, lambda k=kind, b=bits, p=profile, t=transparent: png_case(k, b, p, t, False)
    for kind, bits in ((0, 16), (2, 8), (3, 4), (6, 16)):
        for turned in range(2, 9):
            name = f"png-{kind}-{bits}-orientation-{turned}"
            yield name, lambda k=kind, b=bits, o=turned: png_case(k, b, None, False, False, o)


def meaning_case(kind: int, bits: int, chunks: str) -> Case:
    """gAMA, cHRM, cICP, sRGB and iCCP, and which of them counts (third edition, section 4.3)."""
    p3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    known: dict[str, tuple[bytes, bytes]] = {
        "gama1": (b"gAMA", (100_000).to_bytes(4, "big")),
        "gama18": (b"gAMA", (55_556).to_bytes(4, "big")),
        "gama22": (b"gAMA", (45_455).to_bytes(4, "big")),
        "chrm": (b"cHRM", np.array(p3, ">u4").tobytes()),
        "srgb": (b"sRGB", b"\0"),
        "cicp-srgb": (b"cICP", bytes([1, 13, 0, 1])),
        "cicp-p3": (b"cICP", bytes([12, 13, 0, 1])),
        "cicp-linear": (b"cICP", bytes([1, 8, 0, 1])),
        "icc": iccp(ICC["adobe"]),
    }
    stored = samples(files.CHANNELS[kind], bits)
    parts = chunks.split("+")
    before = [known[name] for name in parts]
    value, colour_bits = shown(stored, bits), bits
    if kind == 3:
        before.append((b"PLTE", PALETTE[: 2**bits].tobytes()))
        value, colour_bits = PALETTE[stored[..., 0]] / 255, 8
    if "cicp-p3" in parts:
        value = icc.to_srgb(value, icc.P3, icc.srgb_decode)
    elif "cicp-linear" in parts:
        value = icc.srgb_encode(value)
    elif "cicp-srgb" in parts or "srgb" in parts:
        pass
    elif "icc" in parts:
        value = through(value, "adobe")
    else:
        gamma = 1.0 if "gama1" in parts else 1.8 if "gama18" in parts else icc.srgb_decode
        value = icc.to_srgb(value, icc.P3 if "chrm" in parts else icc.SRGB, gamma)
    return files.png(stored, kind, bits, before), Expected(
        value, depth(colour_bits), None, closeness(True, colour_bits)
    )


@cases
def png_meanings() -> Iterator[tuple[str, Callable[[], Case]]]:
    names = [
        "gama1",
        "gama18",
        "gama22",
        "chrm",
        "gama22+chrm",
        "gama1+srgb",
        "gama1+icc",
        "cicp-srgb+icc",
    ]
    names += ["cicp-p3", "cicp-linear", "cicp-p3+gama1+srgb", "gama1+chrm"]
    for (kind, bits), chunks in itertools.product(((2, 8), (2, 16), (3, 8)), names):
        yield f"png-{kind}-{bits}-{chunks}", lambda k=kind, b=bits, c=chunks: meaning_case(k, b, c)
    for bits, chunks in itertools.product(
        (8, 16), ("gama1", "gama18", "gama1+srgb", "cicp-linear")
    ):
        yield f"png-0-{bits}-{chunks}", lambda b=bits, c=chunks: meaning_case(0, b, c)


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


def pillow_case(
    form: str, mode: str, profile: str | None = None, orientation: int = 1, **options: object
) -> Case:
    """Files by Pillow; lossy ones are compared with what OpenCV decodes."""
    count = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    y, x = np.mgrid[0:H, 0:W] / max(H, W)
    planes = np.stack([x, y, 1 - x, (x + y) / 2][:count], axis=2)
    stored = np.rint(planes * 255).astype(np.uint8)
    image = Image.fromarray(stored.squeeze(), mode if mode == "CMYK" else None)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = GREY_ICC.get(profile or "") or ICC.get(profile or "") or (CMYK_ICC if profile else None)
    file = io.BytesIO()
    image.save(file, form, exif=exif if orientation > 1 else b"", icc_profile=data, **options)
    content = file.getvalue()
    if form == "JPEG" and mode != "CMYK":
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        stored = np.atleast_3d(decoded)[..., ::-1]
    value, alpha = stored / 255, None
    if mode in ("LA", "RGBA"):
        value, alpha = value[..., :-1], value[..., -1]
    close = closeness(profile, 8)
    if mode == "CMYK":
        inks = 255 - imagecodecs.jpeg8_decode(content)  # Adobe stores them inverted
        value = (1 - inks[..., :3] / 255) * (1 - inks[..., 3:] / 255)
        if profile:
            value = through_lcms(inks, "CMYK", CMYK_ICC)
    elif value.shape[2] == 1:
        value = grey_through(value.repeat(3, axis=2), profile)
    else:
        value = through(value, profile)
    turn = ORIENTED[orientation]
    return content, Expected(turn(value), 8, None if alpha is None else turn(alpha), close)


@cases
def jpegs_and_webps() -> Iterator[tuple[str, Callable[[], Case]]]:
    for mode, progressive in itertools.product(("L", "RGB", "CMYK"), (False, True)):
        name = f"jpeg-{mode}{'-progressive' * progressive}"
        yield name, lambda m=mode, p=progressive: pillow_case("JPEG", m, quality=95, progressive=p)
    for sampling in (0, 1, 2):
        yield (
            f"jpeg-sampling-{sampling}",
            lambda s=sampling: pillow_case("JPEG", "RGB", subsampling=s),
        )
    for profile in RGB_PROFILES:
        yield f"jpeg-RGB-icc-{profile}", lambda p=profile: pillow_case("JPEG", "RGB", p, quality=95)
    for profile in GREY_PROFILES:
        yield f"jpeg-L-icc-{profile}", lambda p=profile: pillow_case("JPEG", "L", p, quality=95)
    yield "jpeg-CMYK-icc", lambda: pillow_case("JPEG", "CMYK", "press", quality=95)
    for form, turned in itertools.product(("JPEG", "WEBP"), range(2, 9)):
        lossless = {"lossless": True} if form == "WEBP" else {}
        name = f"{form.lower()}-orientation-{turned}"
        yield name, lambda f=form, o=turned, q=lossless: pillow_case(f, "RGB", None, o, **q)
    exact = {"lossless": True, "exact": True}
    for mode, profile in itertools.product(("RGB", "RGBA"), (None, *RGB_PROFILES)):
        name = f"webp-{mode}-{profile}"
        yield name, lambda m=mode, p=profile: pillow_case("WEBP", m, p, **exact)


def bmp_case(kind: str) -> Case:
    rgb, close = samples(3, 8), 1.0
    bits = {
        "palette1": 1,
        "palette4": 4,
        "rle4": 4,
        "palette8": 8,
        "rle8": 8,
        "555": 16,
        "565": 16,
        "24": 24,
    }.get(kind, 32)
    bgr = rgb[..., ::-1]
    options: dict[str, object] = {}
    alpha = None
    if bits <= 8:
        stored = samples(1, bits)
        colours = PALETTE[: 2**bits]
        options["palette"] = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
        rows = [files.packed(row, bits) for row in stored]
        rgb = colours[stored[..., 0]]
        if kind.startswith(
            "rle"
        ):  # runs of one pixel, from the bottom; then the end of line, of file
            value = stored[::-1, :, 0]
            rows = [
                b"".join(bytes([1, v << (8 - bits) if bits == 4 else v]) for v in row) + b"\0\0"
                for row in value
            ]
            rows[-1] += b"\0\1"
            options["compression"] = 1 if bits == 8 else 2
    elif bits == 16:
        shifts = (10, 5, 0) if kind == "555" else (11, 5, 0)
        widths = (5, 5, 5) if kind == "555" else (5, 6, 5)
        reduced = [rgb[..., n] >> (8 - widths[n]) for n in range(3)]
        words = sum(reduced[n].astype(np.uint16) << shifts[n] for n in range(3))
        rows = [row.astype("<u2").tobytes() for row in words]
        rgb = np.stack([reduced[n] * 255.0 / (2 ** widths[n] - 1) for n in range(3)], axis=2)
        if kind == "565":
            options |= {"compression": 3, "masks": (0xF800, 0x07E0, 0x001F)}
    elif bits == 24:
        rows = [row.tobytes() for row in bgr]
    else:
        fourth = samples(4, 8)[..., 3:]
        rows = [row.tobytes() for row in np.concatenate([bgr, fourth], axis=2)]
        if kind == "alpha":
            alpha = fourth[..., 0] / 255
            options |= {"compression": 3, "masks": (0xFF0000, 0xFF00, 0xFF, 0xFF000000)}
    value = rgb / 255
    if kind == "icc":
        options["profile"], value, close = ICC["adobe"], through(value, "adobe"), 2.0
    if kind == "top-down":
        options["top_down"] = True
    return files.bmp(rows, W, bits, **options), Expected(value, 8, alpha, close)


@cases
def bmps() -> Iterator[tuple[str, Callable[[], Case]]]:
    kinds = (
        "palette1",
        "palette4",
        "palette8",
        "rle4",
        "rle8",
        "555",
        "565",
        "24",
        "32",
        "alpha",
        "icc",
        "top-down",
    )
    for kind in kinds:
        yield f"bmp-{kind}", lambda k=kind: bmp_case(k)


def netpbm_case(kind: int, largest: int) -> Case:
    count = 3 if kind in (3, 6) else 1
    value = samples(count, 16) / 65535
    stored = np.rint(value * largest).astype(np.int64)
    head = f"P{kind}\n# a comment\n{W} {H}\n" + ("" if kind in (1, 4) else f"{largest}\n")
    if kind in (1, 4):
        ink = 1 - stored
        body = b"".join(np.packbits(row[:, 0]).tobytes() for row in ink.astype(np.uint8))
        body = body if kind == 4 else "".join(map(str, ink.ravel())).encode()
    elif kind < 4:
        body = " ".join(map(str, stored.ravel())).encode()
    else:
        body = stored.astype(">u2" if largest > 255 else "u1").tobytes()
    value = stored / largest
    value = value.repeat(3, axis=2) if count == 1 else value
    bits = 8 if largest < 256 else 16
    return head.encode() + body, Expected(value, bits, None, closeness(None, bits))


def pfm_case(count: int, order: str) -> Case:
    value = (samples(count, 16) / 65535).astype(np.float32)
    head = f"P{'F' if count == 3 else 'f'}\n{W} {H}\n{'-1.0' if order == '<' else '1.0'}\n"
    body = value[::-1].astype(f"{order}f4").tobytes()
    shown_value = value.repeat(3, axis=2) if count == 1 else value
    return head.encode() + body, Expected(shown_value, 16, None, 2 / 257)


@cases
def netpbms() -> Iterator[tuple[str, Callable[[], Case]]]:
    for kind in (1, 4):
        yield f"p{kind}", lambda k=kind: netpbm_case(k, 1)
    for kind, largest in itertools.product((2, 3, 5, 6), (1, 15, 255, 256, 1023, 65535)):
        yield f"p{kind}-{largest}", lambda k=kind, m=largest: netpbm_case(k, m)
    for count, order in itertools.product((1, 3), "<>"):
        yield (
            f"pfm-{count}-{'little' if order == '<' else 'big'}",
            lambda c=count, o=order: pfm_case(c, o),
        )


def gif_case(transparent: bool, interlaced: bool) -> Case:
    stored = samples(1, 4)[..., 0]
    image = Image.fromarray(stored, "P")
    image.putpalette(PALETTE[:16].tobytes())
    file, options = io.BytesIO(), {"transparency": 3} if transparent else {}
    image.save(file, "GIF", interlace=interlaced, optimize=False, **options)
    alpha = (stored != 3).astype(float) if transparent else None
    return file.getvalue(), Expected(PALETTE[stored] / 255, 8, alpha)


def jpeg_2000_case(channels: int, bits: int, profile: str | None) -> Case:
    stored = samples(channels, bits)
    content = imagecodecs.jpeg2k_encode(
        stored.squeeze(), level=0, codecformat="jp2", reversible=True, bitspersample=bits
    )
    if profile:  # the enumerated colour space makes way for a profile
        at = content.index(b"colr") - 4
        size = int.from_bytes(content[at : at + 4], "big")
        body = b"\2\0\0" + ICC[profile]
        box = (8 + len(body)).to_bytes(4, "big") + b"colr" + body
        start = content.index(b"jp2h") - 4
        length = int.from_bytes(content[start : start + 4], "big") + len(box) - size
        content = (
            content[:start]
            + length.to_bytes(4, "big")
            + content[start + 4 : at]
            + box
            + content[at + size :]
        )
    value, alpha = stored / (2**bits - 1), None
    if channels in (2, 4):
        value, alpha = value[..., :-1], value[..., -1]
    value = value.repeat(3, axis=2) if value.shape[2] == 1 else value
    return content, Expected(through(value, profile), depth(bits), alpha, closeness(profile, bits))


def avif_case(bits: int, channels: int, primaries: int, profile: str | None) -> Case:
    stored = samples(channels, bits)
    if profile or bits == 8:
        file = io.BytesIO()
        image = Image.fromarray(stored)
        image.save(
            file,
            "AVIF",
            quality=100,
            subsampling="4:4:4",
            icc_profile=ICC[profile] if profile else None,
        )
        content = file.getvalue()
    else:
        content = imagecodecs.avif_encode(
            stored,
            level=100,
            bitspersample=bits,
            primaries=primaries,
            transfer=13,
            pixelformat="444",
        )
    decoded = imagecodecs.avif_decode(content).astype(float) / (2**bits - 1)
    value, alpha = (decoded[..., :3], decoded[..., 3]) if channels == 4 else (decoded, None)
    if primaries == 12:
        value = icc.to_srgb(value, icc.P3, icc.srgb_decode)
    deep = depth(bits)
    return content, Expected(through(value, profile), deep, alpha, closeness(True, deep))


def heif_case(bits: int, channels: int, primaries: int, profile: str | None) -> Case:
    """Lossless: RGB is stored as it is (matrix coefficients 0)."""
    stored = samples(channels, bits)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels] + (";16" if bits > 8 else "")
    data = (stored << (16 - bits) if bits > 8 else stored).tobytes()
    picture = pillow_heif.from_bytes(mode=mode, size=(W, H), data=data)
    file, matrix = io.BytesIO(), {} if channels == 1 else {"matrix_coefficients": 0}
    picture.save(
        file, quality=-1, chroma=444, color_primaries=primaries, transfer_characteristics=13,
        full_range_flag=1, icc_profile=ICC[profile] if profile else None, **matrix,
    )  # fmt: skip
    value, alpha = stored / (2**bits - 1), None
    if channels == 4:
        value, alpha = value[..., :3], value[..., 3]
    value = value.repeat(3, axis=2) if channels == 1 else value
    if primaries == 12:
        value = icc.to_srgb(value, icc.P3, icc.srgb_decode)
    deep = depth(bits)
    return file.getvalue(), Expected(through(value, profile), deep, alpha, closeness(True, deep))


@cases
def heifs() -> Iterator[tuple[str, Callable[[], Case]]]:
    for bits, channels, primaries, profile in (
        (8, 3, 1, None), (8, 1, 1, None), (8, 4, 1, None), (8, 3, 1, "adobe"), (8, 3, 12, None),
        (10, 3, 1, None), (10, 3, 12, None),
    ):  # fmt: skip
        name = f"heif-{bits}-{channels}-{primaries}-{profile}"
        yield name, lambda b=bits, c=channels, m=primaries, p=profile: heif_case(b, c, m, p)


@cases
def others() -> Iterator[tuple[str, Callable[[], Case]]]:
    for transparent, interlaced in itertools.product((False, True), (False, True)):
        name = f"gif{'-transparent' * transparent}{'-interlaced' * interlaced}"
        yield name, lambda t=transparent, i=interlaced: gif_case(t, i)
    for channels, bits in itertools.product((1, 3, 4), (8, 12, 16)):
        yield f"jpeg2000-{channels}-{bits}", lambda c=channels, b=bits: jpeg_2000_case(c, b, None)
    for bits in (8, 16):
        yield f"jpeg2000-3-{bits}-adobe", lambda b=bits: jpeg_2000_case(3, b, "adobe")
    for bits, channels, primaries, profile in (
        (8, 3, 1, None), (8, 4, 1, None), (8, 3, 1, "adobe"), (10, 3, 1, None), (10, 3, 12, None),
        (12, 3, 1, None),
    ):  # fmt: skip
        name = f"avif-{bits}-{channels}-{primaries}-{profile}"
        yield name, lambda b=bits, c=channels, m=primaries, p=profile: avif_case(b, c, m, p)


def test_the_table_is_large() -> None:
    assert len(CASES) > 500


@pytest.mark.parametrize("name", CASES)
def test_a_file_shows_what_was_written(name: str) -> None:
    content, expected = CASES[name]()
    picture = decode_picture(content, limited(LARGEST))
    full = 2.0**expected.bits - 1
    assert picture.pixels.dtype == (np.uint8 if expected.bits == 8 else np.uint16)
    assert picture.pixels.shape == expected.pixels.shape
    assert (picture.alpha is None) == (expected.alpha is None)
    visible = np.ones(expected.pixels.shape[:2], bool)
    if picture.alpha is not None and expected.alpha is not None:
        np.testing.assert_allclose(picture.alpha / full, expected.alpha, atol=expected.close / 255)
        # Where nearly transparent, premultiplied colours have few digits.
        visible = expected.alpha > 0.2 if "extras-1" in name else visible
    error = np.abs(picture.pixels / full - expected.pixels)[visible].max() * 255
    tolerance = expected.close * (6 if "extras-1" in name else 1)
    assert error <= tolerance + 1e-6, f"{error:.3f} of 255"
    assert not picture.notes
