"""Pictures are written: formats, depth, profile, Software tag, and what they inherit."""

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from lasr.errors import UserError
from lasr.ownership import is_ours
from lasr.pictures.read import Picture, read_picture
from lasr.pictures.samples import Metadata
from lasr.pictures.write import Format, check_format, save_picture, software_tag
from tests.support.pictures import PROFILE, smooth

FORMATS: tuple[Format, ...] = ("png", "tiff", "webp", "jpg")
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"'
    b' exif:PixelXDimension="60"><dc:title>T</dc:title><exif:PixelYDimension>40'
    b"</exif:PixelYDimension></rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", FORMATS)
def test_written_pictures_come_back(
    tmp_path: Path, channels: int, dtype: type, kind: Format
) -> None:
    """Read by our reader, and PNG and TIFF by OpenCV, which shares nothing with the writer."""
    pixels = smooth(channels, dtype)
    if kind == "jpg" and channels in (2, 4):
        with pytest.raises(UserError, match="JPEG cannot hold"):
            check_format(Picture(pixels[..., :1].repeat(3, 2), pixels[..., -1]), (9, 9), kind)
        return
    strips = [pixels[:5], pixels[5:6], pixels[6:]]
    path = tmp_path / f"x.{kind}"
    metadata = Metadata(profile=b"any")
    save_picture(path, strips, pixels.shape, np.dtype(dtype), "LA-SR test", metadata)
    assert software_tag(path) == "LA-SR test" and len(list(tmp_path.iterdir())) == 1
    with Image.open(path) as image:  # the profile fits the mode that is written
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])).profile
        grey = channels == 1 or (channels == 2 and kind == "png")
        assert profile.xcolor_space.strip() == ("GRAY" if grey and kind != "webp" else "RGB")
    picture = read_picture(path)
    assert not picture.notes
    back = picture.planes
    spread = {1: [0], 2: [0, 0, 0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    if kind == "png" or (kind == "tiff" and channels != 2):
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, pixels)
        theirs = cv2.imread(str(path), -1) if kind == "png" else tifffile.imread(path)
        order = [2, 1, 0, 3] if kind == "png" else [0, 1, 2, 3]
        ours = pixels[:, :, spread]
        ours = ours[:, :, order[: len(spread)]] if len(spread) > 1 else ours
        np.testing.assert_array_equal(theirs, ours.squeeze())
    else:
        assert back.dtype == (dtype if kind == "tiff" else np.uint8)
        expected, got = (
            p[:, :, [0, 0, 0, -1] if p.shape[2] in (1, 2) else slice(None)] / np.iinfo(p.dtype).max
            for p in (pixels, back)
        )
        if channels in (2, 4):  # what is invisible may take any colour
            expected, got = expected * expected[:, :, 3:], got * got[:, :, 3:]
        assert np.abs(expected[:, :, :3] - got[:, :, :3]).max() < 0.06


def original(folder: Path) -> Path:
    """A JPEG on its side with EXIF, GPS, XMP and a resolution."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.DateTime] = "2020:01:01 00:00:00"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[0x9003] = "2019:02:03 04:05:06"
    details[0x829A] = (1, 250)
    details[0xA002], details[0xA003] = 60, 40
    details[0x927C] = b"a maker note"
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[1], gps[2] = "N", (48.0, 8.0, 1.5)
    # Not ASCII: Pillow would write a question mark.
    block = exif.tobytes().replace(b"Maker", "Mäk".encode() + b"r")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "in.jpg", exif=block, dpi=(300, 200), xmp=XMP)
    return folder / "in.jpg"


def written(folder: Path, kind: Format, source: Path) -> Path:
    picture = read_picture(source)
    pixels = picture.planes.repeat(4, axis=0).repeat(4, axis=1)
    path = folder / f"out.{kind}"
    save_picture(path, [pixels], pixels.shape, pixels.dtype, "LA-SR test", picture.metadata)
    return path


def exif_by_tifffile(path: Path) -> tuple[dict[int, Any], dict[str, Any], dict[str, Any]]:
    """Main, Exif and GPS tags: an EXIF block is a TIFF, which tifffile reads by its own code."""
    if path.suffix != ".tiff":
        with Image.open(path) as image:
            content = image.info["exif"].removeprefix(b"Exif\0\0")
    else:
        content = path.read_bytes()
    with tifffile.TiffFile(io.BytesIO(content), _multifile=False) as file:
        tags = file.pages[0].tags
        return {t.code: t.value for t in tags}, tags.valueof(34665), tags.valueof(34853)


@pytest.mark.parametrize("kind", FORMATS)
def test_enlarged_pictures_inherit_metadata(tmp_path: Path, kind: Format) -> None:
    path = written(tmp_path, kind, original(tmp_path))
    main, details, gps = exif_by_tifffile(path)
    assert (
        main.get(274, 1) == 1 and main[305] == "LA-SR test" and main[306] == "2020:01:01 00:00:00"
    )
    assert "Mäk" in str(main[271]) or b"M\xc3\xa4k" in bytes(main[271], "latin-1")
    assert details["DateTimeOriginal"] == "2019:02:03 04:05:06" and details["ExposureTime"] == (
        1,
        250,
    )
    assert (details["PixelXDimension"], details["PixelYDimension"]) == (160, 240)
    assert details["MakerNote"] == b"a maker note" and details["ColorSpace"] == 1
    assert gps["GPSLatitudeRef"] == "N" and Fraction(*gps["GPSLatitude"][4:]) == Fraction(3, 2)
    with Image.open(path) as image:
        image.load()
        assert image.size == (160, 240)
        xmp = image.info["xmp"]
        dpi = image.info.get("dpi")
    assert b'tiff:Orientation="1"' in xmp and b'PixelXDimension="160"' in xmp
    assert b"<exif:PixelYDimension>240<" in xmp and b"<dc:title>T<" in xmp
    assert kind == "webp" or dpi == pytest.approx((300, 200), abs=0.1)
    again = read_picture(path)  # applied once: the result is not turned again
    assert again.pixels.shape == (240, 160, 3)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_gives_what_describes_the_photograph(
    tmp_path: Path, kind: Format, order: str
) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif", smooth(3, np.uint16), photometric="rgb", byteorder=order,
        metadata=None, description="A view", resolution=(118, 118), resolutionunit="centimeter",
        software="Editor",
        extratags=[(271, 2, 0, "Maker", True), (315, 2, 0, "Artist", True)],
    )  # fmt: skip
    path = written(tmp_path, kind, tmp_path / "in.tif")
    with Image.open(path) as image:
        image.load()
        exif = image.getexif()
        assert (exif[270], exif[271], exif[315]) == ("A view", "Maker", "Artist")
        assert exif[305] == "LA-SR test" and image.size == (148, 92)
        assert kind == "webp" or image.info["dpi"] == pytest.approx((299.7, 299.7), abs=0.5)
    assert read_picture(path).pixels.dtype == (np.uint16 if kind in ("png", "tiff") else np.uint8)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_and_large_metadata_stop_no_result(tmp_path: Path, kind: Format) -> None:
    pixels = smooth(3)
    note = bytes(70_000)
    large = Image.Exif()
    large.get_ifd(ExifTags.IFD.Exif)[0x927C] = note
    for exif, xmp in ((b"II*\0\xff\xff\xff\xff", b"no XML"), (large.tobytes()[6:], b"x" * 70_000)):
        path = tmp_path / f"x.{kind}"
        metadata = Metadata(exif, xmp, (1e9, 1e-9))
        save_picture(path, [pixels], pixels.shape, pixels.dtype, "LA-SR test", metadata)
        assert software_tag(path) == "LA-SR test"
        assert read_picture(path).pixels.shape == pixels.shape


def test_the_tag_of_results_beyond_pillows_limits_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times 4000 x 3000 pixels are more than Pillow opens."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pixels, metadata = smooth(3), Metadata(xmp=b"x" * 3_000_000)
    for kind in FORMATS:
        path = tmp_path / f"x.{kind}"
        save_picture(path, [pixels], pixels.shape, pixels.dtype, "LA-SR test", metadata)
        assert software_tag(path) == "LA-SR test" and is_ours(path)


def test_pictures_without_a_profile_get_none(tmp_path: Path) -> None:
    for kind in FORMATS:
        save_picture(tmp_path / f"x.{kind}", [smooth(3)], (23, 37, 3), np.dtype(np.uint8), "t")
        with Image.open(tmp_path / f"x.{kind}") as image:
            assert "icc_profile" not in image.info
    assert ImageCms.ImageCmsProfile(io.BytesIO(PROFILE))


def test_pictures_beyond_a_formats_size_are_refused() -> None:
    with pytest.raises(UserError, match="80000 pixels are more than jpg can hold"):
        check_format(Picture(np.zeros((1, 1, 3), np.uint8)), (80_000, 4), "jpg")


@pytest.mark.timeout(20)
def test_files_without_a_software_tag(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("x.png", "absent.png", "pipe.png"):
        assert software_tag(tmp_path / name) is None
