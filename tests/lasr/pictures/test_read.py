"""Every kind of picture is read: depth, channels, orientation, profile."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageOps

from lasr.errors import UserError
from lasr.pictures.png import write_png
from lasr.pictures.read import read_picture
from tests.support.pictures import PROFILE, smooth

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("mode", "name", "channels", "close"),
    [
        ("RGB", "a.png", 3, 0), ("RGB", "a.bmp", 3, 0), ("RGB", "a.tif", 3, 0),
        ("RGB", "a.webp", 3, 12), ("RGB", "a.jpg", 3, 12), ("RGB", "a.ppm", 3, 0),
        ("L", "a.png", 1, 0), ("L", "a.jpg", 1, 4), ("LA", "a.png", 2, 0), ("1", "a.png", 1, 255),
        ("RGBA", "a.png", 4, 0), ("RGBA", "a.tif", 4, 0),
        ("P", "a.png", 3, 60), ("P", "a.gif", 3, 60), ("CMYK", "a.jpg", 3, 12),
        ("CMYK", "a.tif", 3, 2), ("YCbCr", "a.jpg", 3, 12),
    ],
)  # fmt: skip
def test_eight_bits(tmp_path: Path, mode: str, name: str, channels: int, close: int) -> None:
    pixels = smooth({"LA": 2, "L": 1, "1": 1, "RGBA": 4}.get(mode, 3))
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.convert(mode).save(path := tmp_path / f"größe 1 {name}", quality=98)
    picture = read_picture(path)
    assert picture.pixels.dtype == np.uint8 and picture.channels == channels
    assert np.abs(picture.pixels.astype(int) - pixels).max() <= close


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("writer", ["opencv.png", "opencv.tif", "tifffile.tif"])
def test_sixteen_bits_stay(tmp_path: Path, channels: int, writer: str) -> None:
    pixels = smooth(channels, np.uint16)
    path = tmp_path / writer
    if writer.startswith("opencv"):
        cv2.imwrite(str(path), pixels[:, :, [2, 1, 0, 3][:channels]] if channels > 1 else pixels)
    else:
        kind = {"photometric": "rgb"} if channels > 1 else {"photometric": "minisblack"}
        extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        tifffile.imwrite(path, pixels.squeeze(), **kind, **extra)
    np.testing.assert_array_equal(read_picture(path).pixels, pixels)


def test_transparent_palettes_floats_and_frames(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "p.png", transparency=0)
    pixels = read_picture(tmp_path / "p.png").pixels
    assert pixels[0, 0, 3] == 0 and pixels[3, 3].tolist() == [200, 100, 50, 255]
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    tifffile.imwrite(tmp_path / "f.tif", values)
    got = read_picture(tmp_path / "f.tif").pixels
    assert got.dtype == np.uint16 and np.abs(got[:, :, 0] / 65535 - values).max() < 1e-5
    tifffile.imwrite(tmp_path / "hdr.tif", values * 9)
    with pytest.raises(UserError, match="floats outside 0 to 1"):
        read_picture(tmp_path / "hdr.tif")
    frames = [Image.new("L", (8, 6), 255 * n) for n in (1, 0)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "two.gif").pixels.min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "deep.png", "deep.tif"])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, name: str) -> None:
    """As Pillow's exif_transpose turns an 8-bit PNG with the same rows."""
    pixels = smooth(3)
    tag = Image.Exif()
    tag[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(reference := tmp_path / "reference.png", exif=tag)
    with Image.open(reference) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    path, deep = tmp_path / name, pixels.astype(np.uint16) * 257
    if name == "deep.png":
        write_png(path, [deep], deep.shape, 16, exif=tag.tobytes())
    elif name == "deep.tif":
        extra = [(274, "H", 1, orientation, False)]
        tifffile.imwrite(path, deep, photometric="rgb", extratags=extra)
    else:
        Image.fromarray(pixels).save(path, exif=tag)
    got = read_picture(path).pixels
    np.testing.assert_array_equal(got, expected.astype(got.dtype) * (257 if "deep" in name else 1))


def test_profiles_are_kept_and_cmyk_goes_through_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(smooth(3)).save(tmp_path / "rgb.png", icc_profile=PROFILE)
    picture = read_picture(tmp_path / "rgb.png")
    assert picture.profile == PROFILE
    np.testing.assert_array_equal(picture.pixels, smooth(3))
    grey = Image.fromarray(smooth(1)[:, :, 0])
    grey.save(tmp_path / "wrong.png", icc_profile=PROFILE)  # an RGB profile in a grey picture
    assert read_picture(tmp_path / "wrong.png").profile is None
    header = bytearray(PROFILE)
    header[16:20] = b"CMYK"  # a broken profile: warned of, and read without
    cmyk = Image.fromarray(smooth(3)).convert("CMYK")
    cmyk.save(tmp_path / "broken.tif", icc_profile=bytes(header))
    assert np.abs(read_picture(tmp_path / "broken.tif").pixels.astype(int) - smooth(3)).max() <= 2
    turned = Image.new("RGB", cmyk.size, "red")
    monkeypatch.setattr(ImageCms, "profileToProfile", lambda *_, **__: turned)
    assert read_picture(tmp_path / "broken.tif").pixels[0, 0].tolist() == [255, 0, 0]


def test_files_that_are_not_pictures_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = io.BytesIO()
    noise = RNG.integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "PNG")
    for content in (b"", b"no", whole.getvalue()[:1000]):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.png: not a readable picture"):
            read_picture(tmp_path / "x.png")


@pytest.mark.timeout(20)
def test_a_named_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: not a regular file"):
        read_picture(tmp_path / "pipe.png")
