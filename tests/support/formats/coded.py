"""Formats with a codec: JPEG, WebP, JPEG 2000, AVIF and HEIF, written by their libraries."""

import io
import itertools
from collections.abc import Callable, Iterator

import cv2
import imagecodecs
import numpy as np
import pillow_heif
from PIL import Image

from tests.support import icc
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
def jpeg_2000s_and_avifs() -> Iterator[tuple[str, Callable[[], Case]]]:
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
