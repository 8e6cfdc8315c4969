"""Photographs in every form they come in, and files that are none."""

import errno
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageOps

from lasr.pictures import formats
from pipeline.inputs.photographs import Found
from pipeline.stages.images import MAX_PIXELS, Unusable, limit_inputs, load
from pipeline.storage import StoragePath
from tests.support import files, icc
from tests.support.raw import save_dng

SIDE = 32


def found(path: Path) -> Found:
    return Found(path.name, StoragePath(str(path)), 0, 0)


def pixels(path: Path) -> np.ndarray:
    loaded = load(found(path), SIDE).pixels
    assert loaded.dtype == np.uint8 and loaded.shape[2] == 3
    return loaded


def colourful(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], -1)
    return Image.fromarray(rgb.astype(np.uint8))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: turn a quarter clockwise
    colourful().save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(np.asarray(colourful()), -1)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
def test_modes_show_what_they_show_elsewhere(tmp_path: Path, mode: str) -> None:
    image = colourful().convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png")[..., 0], np.rint(ramp / 257))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_colour_is_scaled(tmp_path: Path, suffix: str) -> None:
    import cv2

    deep = np.asarray(colourful()).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep[..., ::-1])
    np.testing.assert_array_equal(pixels(tmp_path / f"a.{suffix}"), np.asarray(colourful()))


def test_transparency_is_laid_over_grey(tmp_path: Path) -> None:
    image = colourful().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == 128).all()
    palette = colourful().convert("P")
    palette.save(tmp_path / "b.png", transparency=palette.getpixel((0, 0)))
    assert (pixels(tmp_path / "b.png")[0, 0] == 128).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (60, 40), (200, 30, 30))
    red.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - (200, 30, 30)).max() < 12


def test_profiles_lead_to_srgb(tmp_path: Path, photographs: Path) -> None:
    """rocket.jpg is Adobe RGB: its greys stay, and the same numbers mean a stronger red."""
    adobe = Image.open(photographs / "rocket.jpg").info["icc_profile"]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (60, 40), (120, 120, 120))
    image.paste((180, 60, 60), (30, 0, 60, 40))
    for name, profile in (("adobe", adobe), ("srgb", srgb), ("broken", b"no profile")):
        image.save(tmp_path / f"{name}.png", icc_profile=profile)
    for name in ("srgb", "broken"):
        np.testing.assert_array_equal(pixels(tmp_path / f"{name}.png"), np.asarray(image))
    grey, red = pixels(tmp_path / "adobe.png")[10, [10, 50]].astype(int)
    assert np.abs(grey - 120).max() <= 8 and np.ptp(grey) <= 1
    assert red[0] > 195 and red[1] < 65


def test_same_bytes_same_id(tmp_path: Path) -> None:
    colourful().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert (
        load(found(tmp_path / "a.png"), 1).image_id == load(found(tmp_path / "b.png"), 1).image_id
    )


def bomb(width: int, height: int) -> bytes:
    """A valid PNG header that promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    colourful().save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", "unreadable", "empty"),
        (
            b"no picture",
            "unreadable",
            "not a picture but text, though its name ends as that of PNG",
        ),
        (b"<!DOCTYPE html><html>404", "unreadable", "a web page"),
        (b"PK\3\4" + b"\0" * 99, "unreadable", "a zip archive"),
        (encoded("PNG")[: len(encoded("PNG")) // 2], "unreadable", "damaged"),
        (encoded("JPEG")[:700], "unreadable", "damaged"),
        (bomb(100_000, 100_000), "too_large", "pixels"),
        (bomb(1, 40), "too_small", "1x40"),
    ],
)
def test_unusable_files_have_a_status_and_a_reason(
    tmp_path: Path, content: bytes, status: str, reason: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Unusable, match=reason) as caught:
        load(found(tmp_path / "a.png"), SIDE)
    assert caught.value.status == status and caught.value.image_id


def test_a_vanished_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="cannot be read"):
        load(found(tmp_path / "gone.png"), SIDE)


@pytest.mark.parametrize(("number", "reason"), [(errno.EACCES, "denied"), (errno.EIO, "I/O error")])
def test_a_file_that_cannot_be_opened_or_read_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    colourful().save(tmp_path / "a.png")

    def fail(path: StoragePath) -> bytes:
        raise OSError(number, "on purpose: " + reason, str(path))

    monkeypatch.setattr(StoragePath, "read_bytes", fail)
    with pytest.raises(Unusable, match=f"cannot be read: .*{reason}") as caught:
        load(found(tmp_path / "a.png"), SIDE)
    assert caught.value.status == "unreadable"


def test_pictures_that_extras_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra their pixels; without it a status and the command that installs it."""
    pillow_heif.from_pillow(colourful()).save(tmp_path / "a.heic", quality=-1)
    save_dng(tmp_path / "b.dng", np.asarray(colourful(80, 120)) / 255)
    reference = np.asarray(pillow_heif.open_heif(tmp_path / "a.heic").to_pillow())
    np.testing.assert_array_equal(pixels(tmp_path / "a.heic"), reference)
    assert pixels(tmp_path / "b.dng").shape == (80, 120, 3)
    monkeypatch.setattr(formats, "installed_extras", tuple)
    for name, extra in (("a.heic", "heif"), ("b.dng", "raw")):
        with pytest.raises(Unusable, match=rf"pip install 'la-sr\[{extra}\]'") as caught:
            load(found(tmp_path / name), SIDE)
        assert caught.value.status == "unsupported"


def test_a_format_that_is_not_read_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + b"\0" * 99)
    monkeypatch.setattr(StoragePath, "read_bytes", lambda path: pytest.fail("read"))
    with pytest.raises(Unusable, match="JPEG XL is not read") as caught:
        load(found(tmp_path / "a.jxl"), SIDE)
    assert caught.value.status == "unsupported"


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_frames_is_used_and_noted(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (60, 40), (shade, 0, 0)) for shade in (200, 100, 0)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    loaded = load(found(tmp_path / f"a.{suffix}"), SIDE)
    assert loaded.note and "the first of its 3 frames" in loaded.note
    assert np.abs(loaded.pixels.astype(int) - (200, 0, 0)).max() <= 2
    frames[0].save(tmp_path / "one.png")
    assert load(found(tmp_path / "one.png"), SIDE).note is None


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {}),
        ("AVIF", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "LA", {}),
        ("PNG", "P", {"transparency": 3}),
    ],
)  # fmt: skip
def test_ordinary_files_have_the_pixels_of_earlier_builds(
    tmp_path: Path, form: str, mode: str, options: dict[str, object], orientation: int
) -> None:
    """As version 0.1.0 decoded them with Pillow, to the last bit: rows stay the same."""
    image, exif = colourful().convert("RGBA"), Image.Exif()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif[0x0112] = orientation
    image.convert(mode).save(tmp_path / "a", form, exif=exif, **options)
    with Image.open(tmp_path / "a") as opened:
        expected = ImageOps.exif_transpose(opened)
        if expected.has_transparency_data:
            backdrop = Image.new("RGBA", expected.size, (128, 128, 128, 255))
            expected = Image.alpha_composite(backdrop, expected.convert("RGBA"))
        np.testing.assert_array_equal(pixels(tmp_path / "a"), np.asarray(expected.convert("RGB")))


def test_limits_kinds_and_notes_reach_the_catalogue(tmp_path: Path) -> None:
    """What is beyond --max-pixels, what no reader understands, and what was ignored."""
    path = tmp_path / "a.png"
    colourful().save(path)
    with pytest.raises(
        Unusable, match=r"60x40: more than 2399 pixels; raise .*--max-pixels"
    ) as why:
        load(found(path), SIDE, max_pixels=2399)
    assert why.value.status == "too_large"
    assert load(found(path), SIDE, max_pixels=2400).note is None
    path.write_bytes(files.png(np.asarray(colourful()), 2, 8, [(b"cICP", bytes([9, 16, 0, 1]))]))
    with pytest.raises(Unusable, match=r"an HDR picture \(PQ\)") as why:
        load(found(path), SIDE)
    assert why.value.status == "unsupported"
    colourful().save(path, icc_profile=icc.cmyk())
    note = load(found(path), SIDE).note
    assert note == "its colour profile is for CMYK, not rgb: ignored"


def test_the_default_limit_adds_nothing_to_fingerprints() -> None:
    """Parts made before the limit was an option stay valid; a raised limit selects again."""
    assert limit_inputs(MAX_PIXELS) == ()
    assert () != limit_inputs(2**28) != limit_inputs(2**29)


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "no suffix", "a.tif", "a.png"])
def test_the_content_decides_how_a_photograph_is_read(tmp_path: Path, name: str) -> None:
    colourful().save(tmp_path / "a", "JPEG", quality=95)
    (tmp_path / "a").rename(tmp_path / name)
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    np.testing.assert_array_equal(pixels(tmp_path / name), expected)
