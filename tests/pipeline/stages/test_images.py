"""Photographs in every form they come in, and files that are none."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lasr.errors import UserError
from pipeline.stages import images
from pipeline.stages.images import Found, Unusable, find, load

SIDE = 32


def found(path: Path) -> Found:
    return Found(path.name, path, 0, 0)


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
        (b"no picture", "unreadable", "not a picture"),
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


def test_find_walks_folders_files_globs_and_lists(tmp_path: Path) -> None:
    for name in ("b/two.JPG", "a.png", "b/.hidden.png", ".dir/c.png", "b/notes.doc", "über x.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["a.png", "b/two.JPG", "über x.webp"]
    assert [f.name for f in find([str(tmp_path)])] == names
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.png\n\n{tmp_path}/b\n")
    assert [f.name for f in find([str(tmp_path / "list.txt")])] == names[:2]
    assert [f.name for f in find([str(tmp_path / "*.png"), str(tmp_path / "a.png")])] == ["a.png"]


def test_find_records_links_to_nothing_and_survives_loops(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [f.name for f in find([str(tmp_path)])] == ["a.png", "broken.png"]


def test_names_that_are_no_utf8_are_spelt_out(tmp_path: Path) -> None:
    bytes_name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(bytes_name, "wb") as file:
        file.write(encoded("PNG"))
    (one,) = find([str(tmp_path)])
    assert one.name == r"caf\xe9.png" and load(one, SIDE).pixels.shape == (40, 60, 3)


def test_find_says_what_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: no such folder"):
        find([str(tmp_path / "missing")])
    with pytest.raises(UserError, match="no photograph found"):
        find([str(tmp_path)])


def test_find_follows_links_and_reads_lists_of_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `lasr.pictures.find` adds reaches the manifest: linked folders, pipes, lists."""
    (tmp_path / "data").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "data" / "a.png").touch()
    (tmp_path / "photos" / "b.png").touch()
    (tmp_path / "photos" / "set").symlink_to(tmp_path / "data")
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    photos = str(tmp_path / "photos")
    assert [(f.name, f.size) for f in find([photos])] == [
        ("b.png", 0), ("pipe.png", -1), ("set/a.png", 0)
    ]  # fmt: skip
    assert [f.name for f in find([photos, str(tmp_path / "data")])] == [
        "data/a.png", "photos/b.png", "photos/pipe.png"
    ]  # fmt: skip
    asked = []
    monkeypatch.setattr(images, "_in_object_storage", lambda given: asked.append(given) or [])
    (tmp_path / "list.txt").write_text(f"{photos}/b.png\ns3://bucket/photos\n")
    assert [f.name for f in find([str(tmp_path / "list.txt")])] == ["b.png"]
    assert asked == ["s3://bucket/photos"]
