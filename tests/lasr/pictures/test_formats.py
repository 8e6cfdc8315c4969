"""Formats by content and by suffix, and the formats that extras read."""

import io
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import rawpy
import tifffile
from PIL import Image

from lasr.errors import UserError
from lasr.pictures import formats
from lasr.pictures.decoders.decode import Damaged, decode
from lasr.pictures.formats import PICTURES, Reader, by_suffix, why_not_read
from lasr.pictures.read import TooLarge, decode_picture, limited, read_picture
from lasr.pictures.recognise import recognise
from lasr.pictures.samples import NotSupported
from tests.support.raw import save_dng


def colourful(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], -1)
    return rgb.astype(np.uint8)


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colourful()).save(buffer, form, **options)
    return buffer.getvalue()


def heif(quality: int = -1, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(colourful())).save(buffer, quality=quality, **options)
    return buffer.getvalue()


def ftyp(major: bytes, *others: bytes) -> bytes:
    body = b"ftyp" + major + b"\0\0\0\0" + b"".join(others)
    return struct.pack(">I", len(body) + 4) + body + b"\0" * 32


CONTENTS = {
    "JPEG": encoded("JPEG"), "PNG": encoded("PNG"), "GIF": encoded("GIF"), "BMP": encoded("BMP"),
    "WebP": encoded("WEBP"), "TIFF": encoded("TIFF"), "AVIF": encoded("AVIF"),
    "JPEG 2000": encoded("JPEG2000"), "PNM": encoded("PPM"), "HEIC": heif(),
    "HEIF": ftyp(b"mif1", b"mif1"), "CR3": ftyp(b"crx ", b"isom"), "CR2": b"II*\0\x10\0\0\0CR\2\0",
    "RAF": b"FUJIFILMCCD-RAW 0201", "RW2": b"IIU\0\x18\0\0\0", "ORF": b"IIRO\x08\0\0\0",
    "JPEG XL": b"\xff\x0a\x7f\x08", "Photoshop": b"8BPS\0\1", "GIMP": b"gimp xcf v011\0",
    "OpenEXR": b"\x76\x2f\x31\x01\2\0\0\0", "Radiance HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe",
    "FITS": b"SIMPLE  =                    T", "DICOM": b"\0" * 128 + b"DICM\2\0",
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "a web page (HTML)": b"\n<!DOCTYPE html><html><title>404</title>",
    "text": "Größe: unbekannt\n".encode(), "a zip archive": b"PK\3\4\x14\0\0\0",
    "PAM": b"P7\nWIDTH 2\nHEIGHT 2\n", "farbfeld": b"farbfeld\0\0\0\2",
    "a PDF document": b"%PDF-1.7\n", "a video": ftyp(b"isom", b"mp41"),
    "a Git LFS pointer (run `git lfs pull`)": b"version https://git-lfs.github.com/spec/v1\n",
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_content_tells_the_format_whatever_the_name(name: str) -> None:
    for file_name in ("", "a.jpg", "a.txt", "a.heic"):
        found = recognise(io.BytesIO(CONTENTS[name]), file_name)
        assert found is not None and found.name == name


def test_the_suffix_tells_where_the_content_does_not() -> None:
    for content in (b"", b"\0\1\2\3" * 99):
        assert recognise(io.BytesIO(content)) is None
        found = recognise(io.BytesIO(content), "IMG.CR2")
        assert found == by_suffix("img.cr2") and found is not None and found.name == "CR2"
    for suffix in [
        ".jfif",
        ".jpe",
        ".JPG",
        ".tif",
        ".heic",
        ".hif",
        ".avif",
        ".jxl",
        ".dng",
        ".nef",
        ".arw",
        ".pef",
        ".srw",
    ]:
        kind = by_suffix(f"a{suffix}")
        assert kind is not None and kind.is_picture
    for suffix in [".mp4", ".mov", ".xmp", ".txt", ".zip"]:
        kind = by_suffix(f"a{suffix}")
        assert kind is not None and not kind.is_picture


def test_raw_is_told_from_tiff_by_its_tags(tmp_path: Path) -> None:
    save_dng(tmp_path / "a.tif", colourful() / 255)
    with (tmp_path / "a.tif").open("rb") as file:
        found = recognise(file, "a.tif")
        assert found is not None and found.name == "DNG" and file.tell() == 0
    # As NEF and ARW: a thumbnail, and the sensor's picture in a directory below it.
    pattern = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]
    sensor = {"photometric": 32803, "subfiletype": 0, "metadata": None, "extratags": pattern}
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(colourful(), subifds=1, photometric="rgb", metadata=None)
        writer.write(colourful()[..., 0], **sensor)
    for name, expected in (("b.tif", "camera raw"), ("b.nef", "NEF")):
        with (tmp_path / "b.tif").open("rb") as file:
            found = recognise(file, name)
        assert found is not None and (found.name, found.reader) == (expected, Reader.RAW)
    for big in (False, True):
        tifffile.imwrite(tmp_path / "c.tif", colourful(), photometric="rgb", bigtiff=big)
        with (tmp_path / "c.tif").open("rb") as file:
            found = recognise(file, "c.tif")
        assert found is not None and found.name == "TIFF"


@pytest.mark.parametrize("start", [b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"\0\0\0\xffftyp"])
def test_damaged_directories_are_no_error(start: bytes) -> None:
    for rest in (b"", b"\xff" * 3, b"\xff" * 999, b"\0" * 999, bytes(range(256)) * 4):
        recognise(io.BytesIO(start + rest), "a.jpg")


def test_heic_is_upright_once_and_equals_its_decoder(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    (tmp_path / "a.jpg").write_bytes(heif(exif=exif.tobytes()))  # the name does not matter
    pixels = read_picture(tmp_path / "a.jpg").pixels
    reference = np.asarray(pillow_heif.open_heif(tmp_path / "a.jpg").to_pillow())
    np.testing.assert_array_equal(pixels, reference)
    expected = np.rot90(colourful(), -1).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 3


def test_avif_is_upright_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode_picture(
        encoded("AVIF", quality=100, exif=exif), lambda width, height: None
    ).pixels
    assert np.abs(pixels.astype(int) - np.rot90(colourful(), -1)).mean() < 3


@pytest.mark.parametrize("major", [b"mif1", b"miaf", b"msf1"])
@pytest.mark.parametrize("name", ["a.avif", "a"])
def test_an_avif_is_read_whatever_its_major_brand(major: bytes, name: str) -> None:
    """HEIF allows a general brand first, if `avif` is among the others."""
    content = CONTENTS["AVIF"]
    other = content[:8] + major + content[12:]
    values = [decode(each, lambda width, height: None, name).values for each in (content, other)]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("name", ["a.jpg", "a.dng", "a.heic", "a"])
def test_an_empty_file_is_called_empty(name: str) -> None:
    with pytest.raises(Damaged, match="an empty file"):
        decode(b"", lambda width, height: None, name)


@pytest.mark.parametrize("orientation", [1, 6])
def test_raw_is_developed_as_libraw_does(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.dng"
    save_dng(path, (colourful(80, 120) / 255) ** 2.2, orientation)
    with rawpy.imread(str(path)) as raw:
        reference = raw.postprocess(use_camera_wb=True, gamma=(2.4, 12.92))
    np.testing.assert_array_equal(read_picture(path).pixels, reference)
    upright = np.rot90(colourful(80, 120), -1 if orientation == 6 else 0)
    inner = (slice(8, -8), slice(8, -8))
    scale = reference[inner].mean() / upright[inner].mean()  # LibRaw brightens
    assert np.abs(reference[inner] / scale - upright[inner]).mean() < 12


def test_without_its_extra_a_format_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "installed_extras", tuple)
    (tmp_path / "a.jpg").write_bytes(heif())
    with pytest.raises(
        UserError,
        match=r"HEIC needs `pip install 'la-sr\[heif\]'`, though its name ends as that of JPEG",
    ):
        read_picture(tmp_path / "a.jpg")
    save_dng(tmp_path / "b.dng", colourful() / 255)
    with pytest.raises(UserError, match=r"DNG needs `pip install 'la-sr\[raw\]'`"):
        read_picture(tmp_path / "b.dng")


def test_every_format_is_read_or_has_a_reason() -> None:
    for suffix, kind in PICTURES.items():
        reason = why_not_read(kind, f"a{suffix}")
        assert bool(reason) == (kind.reader is Reader.NONE), suffix
        assert not reason or kind.name in reason


@pytest.mark.parametrize("name", ["a web page (HTML)", "text", "a zip archive", "PostScript"])
def test_what_is_named_as_a_picture_and_is_none_says_so(name: str) -> None:
    error = NotSupported if name == "PostScript" else Damaged
    with pytest.raises(error) as caught:
        decode(CONTENTS[name], lambda width, height: None, "a.jpg")
    assert name in str(caught.value) and "JPEG" in str(caught.value)


def test_deep_heic_keeps_its_depth(tmp_path: Path) -> None:
    deep = np.linspace(0, 65_535, 60 * 40).astype(np.uint16).reshape(40, 60)
    rgb = np.stack([deep, deep, deep], axis=2)
    picture = pillow_heif.from_bytes("RGB;16", (60, 40), rgb.tobytes())
    picture.save(tmp_path / "a.heic", quality=95)
    pixels = read_picture(tmp_path / "a.heic").pixels
    assert pixels.dtype == np.uint16
    assert np.abs(pixels.astype(int) - rgb).mean() < 400  # 10 bits, lossy


def test_sizes_are_checked_before_pixels_are_decoded(tmp_path: Path) -> None:
    save_dng(tmp_path / "a.dng", colourful() / 255)
    for content in (heif(), (tmp_path / "a.dng").read_bytes()):
        with pytest.raises(TooLarge, match="60x40"):
            decode_picture(content, limited(60 * 40 - 1))


def test_damaged_raw_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.rw2").write_bytes(b"IIU\0" + b"x" * 5000)
    with pytest.raises(UserError, match=r"a\.rw2: a camera raw file of a kind"):
        read_picture(tmp_path / "a.rw2")
