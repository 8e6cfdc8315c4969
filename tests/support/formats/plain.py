"""Formats that hold pixels nearly as they are: BMP, Netpbm, PFM and GIF, written by hand."""

import io
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tests.support import files
from tests.support.formats.table import (
    ICC,
    PALETTE,
    Case,
    Expected,
    H,
    W,
    cases,
    closeness,
    samples,
    through,
)


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


@cases
def gifs() -> Iterator[tuple[str, Callable[[], Case]]]:
    for transparent, interlaced in itertools.product((False, True), (False, True)):
        name = f"gif{'-transparent' * transparent}{'-interlaced' * interlaced}"
        yield name, lambda t=transparent, i=interlaced: gif_case(t, i)
