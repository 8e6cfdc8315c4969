"""Hundreds of damaged files of each format: read, or refused in one line; never another error."""

import io
import random
from collections import Counter

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image

from lasr.pictures.decoders.decode import Damaged
from lasr.pictures.read import TooLarge, decode_picture, limited
from lasr.pictures.samples import NotSupported
from tests.support import files, icc

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
DEEP = PIXELS.astype(np.uint16) * 257
MUTANTS = 40  # of each file


def by_pillow(form: str, mode: str = "RGB", **options: object) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    if form in ("JPEG", "PNG", "WEBP", "TIFF"):
        options |= {"exif": exif, "icc_profile": icc.rgb(icc.ADOBE, 2.2) if mode == "RGB" else None}
    Image.fromarray(PIXELS[..., :3]).convert(mode).save(file, form, **options)
    return file.getvalue()


def by_tifffile(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def heic() -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(PIXELS)).save(file, quality=80)
    return file.getvalue()


FILES = {
    "heic": heic,
    "jpeg": lambda: by_pillow("JPEG"),
    "progressive": lambda: by_pillow("JPEG", "CMYK", progressive=True),
    "png": lambda: by_pillow("PNG"),
    "palette": lambda: by_pillow("PNG", "P"),
    "deep png": lambda: files.png(DEEP, 6, 16, [(b"gAMA", (55_556).to_bytes(4, "big"))]),
    "deep rgb png": lambda: files.png(DEEP[..., :3], 2, 16, [(b"tRNS", bytes(6))]),
    "tiff": lambda: by_pillow("TIFF"),
    "lzw": lambda: by_pillow("TIFF", compression="tiff_lzw"),
    "jpeg tiff": lambda: by_pillow("TIFF", "YCbCr", compression="jpeg"),
    "fax": lambda: by_pillow("TIFF", "1", compression="group4"),
    "deep tiff": lambda: by_tifffile(DEEP, photometric="rgb", compression="zlib", predictor=2),
    "planar": lambda: by_tifffile(
        DEEP[..., 0:3].transpose(2, 0, 1), photometric="rgb", tile=(16, 16)
    ),
    "cmyk tiff": lambda: files.tiff(PIXELS, 8, t262=5),
    "palette tiff": lambda: files.tiff(PIXELS[..., :1], 8, ">", t262=3, t320=tuple(range(768))),
    "ycbcr tiff": lambda: by_pillow("TIFF", "YCbCr"),
    "old jpeg": lambda: files.wrapped_in_tiff(by_pillow("JPEG"), 50, 40),
    "bmp": lambda: by_pillow("BMP"),
    "gif": lambda: by_pillow("GIF", "P"),
    "webp": lambda: by_pillow("WEBP"),
    "jpeg 2000": lambda: by_pillow("JPEG2000"),
    "avif": lambda: by_pillow("AVIF"),
    "ppm": lambda: by_pillow("PPM"),
    "ascii": lambda: b"P3 3 2 255\n" + b" ".join(b"%d" % n for n in range(18)),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_one_line(name: str) -> None:
    rng, content = random.Random(name), FILES[name]()
    outcomes = Counter[str]()
    for _ in range(MUTANTS):
        try:
            decode_picture(files.mutated(content, rng), limited(2**20))
            outcomes["read"] += 1
        except (NotSupported, Damaged, TooLarge) as error:
            assert "\n" not in str(error) and 5 < len(str(error)) < 400
            outcomes["refused"] += 1
    decode_picture(content, limited(2**20))
    assert outcomes["refused"] > MUTANTS / 4
