"""What the reader refuses and by which words, its limits, and what it keeps besides pixels.

`test_every_format.py` compares the pixels of each kind of file.
"""

import io
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from lasr.errors import UserError
from lasr.pictures.read import MAX_PIXELS, decode_picture, limited, picture_size, read_picture
from tests.support import files, icc
from tests.support.pictures import PROFILE, smooth

RNG = np.random.default_rng(0)


def saved(form: str, pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, form, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return decode_picture(content, limited(MAX_PIXELS)).pixels


def jpeg_with_frame(marker: int, bits: int = 8) -> bytes:
    """A JPEG whose header claims another kind of frame."""
    content = bytearray(saved("JPEG", smooth(3)))
    at = content.index(b"\xff\xc0")
    content[at + 1], content[at + 4] = marker, bits
    return bytes(content)


FLOATS = np.linspace(0, 1, 23 * 37, dtype=np.float32).reshape(23, 37)


def one_nan() -> np.ndarray:
    values = FLOATS.copy()
    values[3, 4] = np.nan
    return values


def coded(primaries: int, transfer: int, full: int = 1) -> bytes:
    """A PNG with the chunk cICP."""
    return files.png(smooth(3), 2, 8, [(b"cICP", bytes([primaries, transfer, 0, full]))])


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "lossless.jpg": (lambda: jpeg_with_frame(0xC3), "a lossless JPEG file"),
    "hierarchical.jpg": (lambda: jpeg_with_frame(0xC5), "a hierarchical JPEG file"),
    "16bit.jpg": (lambda: jpeg_with_frame(0xC1, 16), "a JPEG with 16 bits"),
    "pq.png": (lambda: coded(9, 16), r"an HDR picture \(PQ\)"),
    "hlg.png": (lambda: coded(9, 18), r"an HDR picture \(HLG\)"),
    "narrow.png": (lambda: coded(1, 13, full=0), "narrow range"),
    "unknown.png": (lambda: coded(99, 13), "colour primaries 99"),
    "critical.png": (lambda: files.png(smooth(3), 2, 8, [(b"ABCD", b"")]), "critical chunk ABCD"),
    "nan.tif": (lambda: tiff(one_nan()), "1 of 851 floats are not numbers"),
    "range.tif": (lambda: tiff(FLOATS * 255), "most of its floats are above 1"),
    "dark.tif": (
        lambda: tiff((FLOATS * 65535).astype(np.uint32)), "32-bit integers of at most 65535"
    ),
    "complex.tif": (lambda: tiff(FLOATS.astype(np.complex64)), "complex numbers"),
    "mask.tif": (lambda: files.tiff(smooth(1), 8, t262=4), "a transparency mask"),
    "itu.tif": (lambda: files.tiff(smooth(3), 8, t262=10), r"ITU L\*a\*b\*"),
    "inks.tif": (lambda: files.tiff(smooth(4), 8, t262=5, t332=2), "other inks than CMYK"),
    "mixed.tif": (lambda: files.tiff(smooth(3), 8, t262=2, t258=(8, 8, 16)), "different bits"),
    "few.tif": (lambda: files.tiff(smooth(2), 8, t262=2), "2 samples per pixel for rgb"),
    "maximum.pgm": (lambda: b"P5 2 2 70000\n" + bytes(8), "the maximum 70000"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, name: str) -> None:
    build, words = REFUSED[name]
    (tmp_path / name).write_bytes(build())
    with pytest.raises(UserError, match=words) as caught:
        read_picture(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_twelve_bit_jpegs_keep_their_bits() -> None:
    pixels = (smooth(3, np.uint16) >> 4).astype(np.uint16)
    content = imagecodecs.jpeg8_encode(pixels, level=99, bitspersample=12, subsampling="444")
    got = decoded(content)
    assert got.dtype == np.uint16 and np.abs(got / 65535 - pixels / 4095).max() < 0.02


def test_floats_outside_0_to_1_are_clipped_and_noted() -> None:
    values = FLOATS.copy()
    values[0, :3] = 1.02, np.inf, -0.5
    picture = decode_picture(tiff(values), limited(MAX_PIXELS))
    expected = np.clip(values, 0, 1) * 65535
    assert np.abs(picture.pixels[..., 0] - expected).max() <= 0.51
    assert picture.notes == ("3 of 851 floats outside 0 to 1 are clipped",)


def test_dark_16_bit_stays_dark() -> None:
    for content in (
        tiff(np.full((9, 9), 200, np.uint16)),
        files.png(np.full((9, 9, 1), 200, np.uint16), 0, 16),
        b"P5 9 9 65535\n" + np.full((9, 9), 200, ">u2").tobytes(),
    ):
        picture = decode_picture(content, limited(MAX_PIXELS))
        assert (picture.pixels == 200).all() and (picture.over(128) == 1).all()


def test_sound_files_that_libraries_refuse_are_read() -> None:
    """More than Pillow's megabyte of text or profile."""
    pixels = smooth(3)
    large = icc.rgb(icc.ADOBE, 563 / 256) + RNG.bytes(3_000_000)
    text = b"Comment\0\0" + zlib.compress(bytes(5_000_000))
    expected = icc.to_srgb(pixels / 255, icc.ADOBE, 563 / 256) * 255
    content = files.png(pixels, 2, 8, [(b"iCCP", b"x\0\0" + zlib.compress(large)), (b"zTXt", text)])
    assert np.abs(decoded(content) - expected).max() <= 2
    content = files.png(pixels, 2, 8, [(b"tEXt", b"Comment\0" + bytes(2_000_000))])
    np.testing.assert_array_equal(decoded(content), pixels)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "BMP", "WEBP", "GIF", "PPM", "JPEG2000"])
def test_pictures_beyond_pillows_limit_are_read(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Pillow refuses 179 megapixels as a "DOS attack"; here 850 are enough for it."""
    content = saved(form, smooth(1))
    expected = decoded(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(decoded(content), expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG", "BMP", "WEBP", "GIF", "PPM", "JPEG2000"])
def test_limits_are_checked_before_pixels_and_name_the_option(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(saved(form, smooth(3)))
    assert picture_size(path) == (37, 23)
    with pytest.raises(UserError, match=r"x: 37x23: more than 850 pixels; raise .*--max-pixels"):
        read_picture(path, max_pixels=850)
    read_picture(path, max_pixels=851)
    monkeypatch.setenv("LASR_MAX_PIXELS", "850")  # for commands without the flag
    with pytest.raises(UserError, match=r"37x23: more than 850 pixels; .*LASR_MAX_PIXELS"):
        read_picture(path)
    monkeypatch.setenv("LASR_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="LASR_MAX_PIXELS=many: not a number of pixels"):
        read_picture(path)


def test_headers_that_claim_a_huge_size_cost_no_memory(tmp_path: Path) -> None:
    side = 60_000
    png = bytearray(files.png(smooth(3), 2, 8))
    png[16:24] = struct.pack(">II", side, side)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    bmp = bytearray(saved("BMP", smooth(3)))
    bmp[18:26] = struct.pack("<II", side, side)
    jpeg = bytearray(saved("JPEG", smooth(3)))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    pnm = b"P6 60000 60000 255\n" + bytes(99)
    flat = files.tiff(smooth(3), 8, t262=2, t256=side, t257=side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (png, bmp, jpeg, pnm, flat):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UserError, match="60000x60000: more than"):
            read_picture(tmp_path / "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_profile_that_inflates_without_end_is_refused() -> None:
    bomb = b"x\0\0" + zlib.compress(bytes(2**26))
    with pytest.raises(ValueError, match="inflates to more than"):
        decoded(files.png(smooth(3), 2, 8, [(b"iCCP", bomb)]))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_profiles_that_do_not_fit_are_ignored_and_noted(form: str) -> None:
    header = bytearray(PROFILE)
    header[128:] = bytes(len(header) - 128)
    for profile, words in (
        (bytes(header), "is broken and is ignored"),
        (icc.cmyk(), "is for CMYK, not rgb: ignored"),
        (icc.grey(1.8), "is for GRAY, not rgb: ignored"),
    ):
        content = saved(form, smooth(3), icc_profile=profile)
        picture = decode_picture(content, limited(MAX_PIXELS))
        assert len(picture.notes) == 1 and words in picture.notes[0]
        plain = saved(form, smooth(3))
        np.testing.assert_array_equal(picture.pixels, decoded(plain))


def test_a_jpeg_that_lacks_a_part_of_its_profile_is_read_without() -> None:
    profile = icc.rgb(icc.ADOBE, 2.2) + bytes(100_000)  # two segments
    content = saved("JPEG", smooth(3), icc_profile=profile)
    expected = icc.to_srgb(decoded(saved("JPEG", smooth(3))) / 255, icc.ADOBE, 563 / 256) * 255
    assert np.abs(decoded(content) - expected).max() <= 2
    at = content.index(b"ICC_PROFILE\0\2") - 4
    (length,) = struct.unpack_from(">H", content, at + 2)
    cut = content[:at] + content[at + 2 + length :]
    picture = decode_picture(cut, limited(MAX_PIXELS))
    assert picture.notes == ("a part of its colour profile is missing: it is ignored",)


def test_grey_pictures_take_the_curve_of_an_rgb_profile() -> None:
    content = saved("JPEG", smooth(1), icc_profile=icc.rgb(icc.ADOBE, 1.0))
    plain = decoded(saved("JPEG", smooth(1)))
    expected = icc.srgb_encode(plain / 255) * 255
    picture = decode_picture(content, limited(MAX_PIXELS))
    assert picture.is_grey and np.abs(picture.pixels - expected).max() <= 2


def test_adobe_rgb_that_only_exif_states(tmp_path: Path) -> None:
    """Cameras write ColorSpace 65535 and the interoperability index R03 (DCF 2.0)."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[0xA001] = 65535
    exif.get_ifd(ExifTags.IFD.Exif)[0xA005] = {1: "R03"}
    content = saved("JPEG", smooth(3), exif=exif)
    plain = decoded(saved("JPEG", smooth(3)))
    expected = icc.to_srgb(plain / 255, icc.ADOBE, 563 / 256) * 255
    assert np.abs(decoded(content) - expected).max() <= 2


def test_colour_tags_of_tiff() -> None:
    """WhitePoint, PrimaryChromaticities and TransferFunction without a profile."""
    white = ("rational", 3127, 10000, 3290, 10000)
    p3 = ("rational", 680, 1000, 320, 1000, 265, 1000, 690, 1000, 150, 1000, 60, 1000)
    pixels = smooth(3)
    expected = icc.to_srgb(pixels / 255, icc.P3, icc.srgb_decode) * 255
    content = files.tiff(pixels, 8, t262=2, t318=white, t319=p3)
    assert np.abs(decoded(content) - expected).max() <= 2
    linear = tuple(int(v) for v in np.rint(np.linspace(0, 65535, 256)))
    content = files.tiff(pixels, 8, t262=2, t318=white, t319=p3, t301=linear)
    expected = icc.to_srgb(pixels / 255, icc.P3, 1.0) * 255
    assert np.abs(decoded(content) - expected).max() <= 2


def test_kinds_of_tiff_that_only_libtiff_writes() -> None:
    """Compared with libtiff through Pillow: JPEG, fax and YCbCr, subsampled too."""
    image = Image.fromarray(smooth(3))
    for mode, options in (
        ("RGB", {"compression": "jpeg"}), ("L", {"compression": "jpeg"}),
        ("CMYK", {"compression": "jpeg"}), ("YCbCr", {"compression": "jpeg"}),
        ("YCbCr", {}), ("YCbCr", {"compression": "tiff_lzw"}),
        ("1", {"compression": "group3"}), ("1", {"compression": "group4"}),
    ):  # fmt: skip
        file = io.BytesIO()
        image.convert(mode).save(file, "TIFF", **options)
        with Image.open(file) as theirs:
            expected = np.asarray(theirs.convert("RGB")).astype(int)
        assert np.abs(decoded(file.getvalue()) - expected).max() <= 1, (mode, options)


@pytest.mark.parametrize(("across", "down"), [(2, 2), (2, 1), (1, 2), (4, 2)])
def test_subsampled_ycbcr(across: int, down: int) -> None:
    ycbcr = np.asarray(
        Image.fromarray(np.full((24, 32, 3), (200, 60, 30), np.uint8)).convert("YCbCr")
    ).copy()
    ycbcr[..., 0] = smooth(1)[:1, :1, 0] + np.arange(
        32, dtype=np.uint8
    )  # luma varies, chroma does not
    units = ycbcr.reshape(24 // down, down, 32 // across, across, 3).swapaxes(1, 2)
    luma = units[..., 0].reshape(24 // down, 32 // across, -1)
    data = np.concatenate([luma, units[:, :, 0, 0, 1:]], axis=2)
    rows = data.reshape(24 // down, 1, -1)  # as "samples", so that the writer stores them in order
    tags = {"t530": (across, down), "t256": 32, "t257": 24, "t277": 3, "t278": 12}
    content = files.tiff(rows, 8, t262=6, t258=(8, 8, 8), **tags)
    expected = np.asarray(Image.fromarray(ycbcr, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(decoded(content) - expected).max() <= 1


def test_old_style_jpeg_in_tiff() -> None:
    jpeg = saved("JPEG", smooth(3), quality=95, subsampling=0)
    content = files.wrapped_in_tiff(jpeg, 37, 23)
    expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)
    assert np.abs(decoded(content) - expected).max() <= 1


def test_the_first_full_picture_of_several_is_read() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(smooth(3)[::4, ::4], subfiletype=1, photometric="rgb", metadata=None)
        writer.write(smooth(3), photometric="rgb", metadata=None)
        writer.write(smooth(3) // 2, photometric="rgb", metadata=None)
    picture = decode_picture(file.getvalue(), limited(MAX_PIXELS))
    np.testing.assert_array_equal(picture.pixels, smooth(3))
    assert picture.notes == ("only the first of its 2 frames is read",)
    frames = [Image.new("L", (8, 6), 255 * n) for n in (1, 0)]
    for form in ("GIF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, form, save_all=True, append_images=frames[1:])
        picture = decode_picture(file.getvalue(), limited(MAX_PIXELS))
        assert picture.pixels.min() == 255
        assert picture.notes == ("only the first of its 2 frames is read",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_that_only_xmp_states_is_applied(form: str) -> None:
    """Not where EXIF states one, too."""
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    key, value = b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    with_exif, without = (
        files.png(smooth(3), 2, 8, [(key, value), *more])
        if form == "PNG"
        else files.tiff(smooth(3), 8, t262=2, t700=xmp, **({"t274": 1} if more else {}))
        if form == "TIFF"
        else saved(form, smooth(3), xmp=xmp, exif=exif if more else b"")
        for more in ([(b"eXIf", exif.tobytes()[6:])], [])
    )
    assert decoded(without).shape == (37, 23, 3)
    assert decoded(with_exif).shape == (23, 37, 3)


def test_metadata_is_kept() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        content = saved(form, smooth(3), exif=exif, dpi=(300, 300), icc_profile=PROFILE)
        kept = decode_picture(content, limited(MAX_PIXELS)).metadata
        assert b"Maker" in (kept.exif or b"") and kept.profile == PROFILE
        assert form == "WEBP" or kept.dpi == pytest.approx((300, 300), abs=0.1)


def test_files_that_are_not_pictures_are_refused_in_one_line(tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    for content in (b"", b"no", saved("PNG", noise)[:1000]):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.png: not a readable picture"):
            read_picture(tmp_path / "x.png")


@pytest.mark.parametrize(
    "kind", ["jpg", "png", "png16", "tif", "lzw.tif", "tif16", "bmp", "gif", "webp", "jp2", "ppm"]
)
def test_files_that_end_early_are_refused(kind: str) -> None:
    """Whatever is missing of the pixels: no decoder may fill it with grey or black."""
    pixels = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    deep = pixels.astype(np.uint16) * 257
    content = {
        "jpg": lambda: saved("JPEG", pixels), "png": lambda: saved("PNG", pixels),
        "png16": lambda: files.png(deep, 2, 16), "tif": lambda: tiff(pixels, photometric="rgb"),
        "lzw.tif": lambda: saved("TIFF", pixels, compression="tiff_lzw"),
        "tif16": lambda: tiff(deep, photometric="rgb", compression="zlib"),
        "bmp": lambda: saved("BMP", pixels), "gif": lambda: saved("GIF", pixels[..., 0]),
        "webp": lambda: saved("WEBP", pixels, lossless=True),
        "jp2": lambda: saved("JPEG2000", pixels), "ppm": lambda: saved("PPM", pixels),
    }[kind]()  # fmt: skip
    decoded(content)
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(ValueError):
            decoded(content[: int(len(content) * share)])


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("kind", "bits"), [(0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (6, 8)]
)
def test_a_png_whose_rows_end_early_is_refused(kind: int, bits: int, interlaced: bool) -> None:
    """Its chunks are whole and its stream of rows is closed, but has too few of them."""
    channels, dtype = files.CHANNELS[kind], np.uint16 if bits == 16 else np.uint8
    pixels = RNG.integers(1, 2**bits, (41, 50, channels), dtype=dtype)
    before = [(b"PLTE", bytes(range(48)))] if kind == 3 else []
    content = files.png(pixels, kind, bits, before, interlaced)
    decoded(content)
    at = content.index(b"IDAT")
    rows = zlib.decompress(content[at + 4 :])
    row = 1 + -(-50 * channels * bits // 8)  # bytes, in the last pass, too
    for missing in (1, row, 9 * row):
        stream = zlib.compress(rows[:-missing])
        short = files.chunk(b"IDAT", stream) + files.chunk(b"IEND", b"")
        with pytest.raises(ValueError):
            decoded(content[: at - 4] + short)


def test_a_black_png_is_read() -> None:
    for interlaced in (False, True):
        black = np.zeros((7, 5, 3), np.uint8)
        np.testing.assert_array_equal(decoded(files.png(black, 2, 8, (), interlaced)), black)


def test_a_cut_jpeg_in_a_tiff_is_refused() -> None:
    pixels = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = tiff(pixels, photometric="rgb", compression="jpeg", rowsperstrip=32)
    decoded(content)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        offset, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    end = offset + count
    with pytest.raises(ValueError, match="a JPEG among its strips or tiles is cut"):
        decoded(content[: end - count // 2] + bytes(count // 2) + content[end:])


@pytest.mark.parametrize("space", ["CMYK", "YCCK"])
def test_deep_cmyk_jpegs_are_inverted_as_those_of_8_bit(space: str) -> None:
    ink = smooth(4)
    options = {"level": 99, "subsampling": "444", "colorspace": "CMYK", "outcolorspace": space}
    flat = decoded(imagecodecs.jpeg8_encode(ink, **options))
    deep = (ink.astype(np.uint32) * 4095 // 255).astype(np.uint16)
    got = decoded(imagecodecs.jpeg8_encode(deep, bitspersample=12, **options))
    assert np.abs(got / 257 - flat).mean() < 1


@pytest.mark.parametrize(
    "content",
    [
        b"P6 1e0 1 255\n" + bytes(3), b"P6 1.9 1 255\n" + bytes(3), b"P6 1_0 1 255\n" + bytes(30),
        b"P5 1 1 nan\n\0", b"P5 1 -1 255\n\0", b"Pf 1 1 nan\n" + bytes(4), b"Pf 1 1 0\n" + bytes(4),
        b"P2 2 1 255\n12 x", b"P2 2 1 255\n12 1_2", b"P2 2 1 255\n12 00000000000000000012",
    ],
)  # fmt: skip
def test_netpbm_numbers_are_numbers(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"its header has|is no number"):
        decoded(content)


def test_netpbm_numbers_may_be_padded() -> None:
    np.testing.assert_array_equal(decoded(b"P2 2 1 255\n00000000012 0255")[0, :, 0], [12, 255])


@pytest.mark.parametrize(("tag", "value"), [(279, 0), (273, 0), (273, 2**20)])
def test_strips_that_are_missing_are_not_filled_with_black(
    tmp_path: Path, tag: int, value: int
) -> None:
    """tifffile takes a strip without bytes for one of zeros; so do sparse GeoTIFFs."""
    (tmp_path / "x.tif").write_bytes(tiff(smooth(3), photometric="rgb", rowsperstrip=8))
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+b") as file:
        entry = file.pages[0].tags[tag]
        entry.overwrite((*entry.value[:-1], value))
    with pytest.raises(UserError, match="ends before its pixels do, or a strip or tile is missing"):
        read_picture(tmp_path / "x.tif")


@pytest.mark.timeout(20)
def test_a_named_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: not a regular file"):
        read_picture(tmp_path / "pipe.png")


def test_a_profile_is_srgb_by_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from lasr.pictures.colour import is_srgb

    assert is_srgb(PROFILE) and is_srgb(icc.rgb(icc.SRGB, icc.srgb_decode, "Monitor"))
    for profile in (
        icc.rgb(icc.SRGB, 1.0, "sRGB linear"),
        icc.rgb(icc.SRGB, 2.2, "sRGB"),
        icc.rgb(icc.P3, icc.srgb_decode, "sRGB IEC61966-2.1"),
        b"sRGB",
    ):
        assert not is_srgb(profile)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("pictures in sRGB are not converted")

    is_srgb(PROFILE)
    monkeypatch.setattr(ImageCms, "profileToProfile", never)
    content = saved("PNG", smooth(3), icc_profile=PROFILE)
    np.testing.assert_array_equal(decoded(content), smooth(3))
