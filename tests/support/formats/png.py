"""PNG files of every kind, written by hand, and chunks that change what they mean."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tests.support import files, icc
from tests.support.formats.table import (
    GREY_ICC,
    GREY_PROFILES,
    ICC,
    ORIENTED,
    PALETTE,
    RGB_PROFILES,
    Case,
    Expected,
    cases,
    closeness,
    depth,
    grey_through,
    iccp,
    samples,
    shown,
    through,
)

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
