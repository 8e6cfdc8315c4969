"""Pictures are written: formats, depth, profile, Software tag."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from lasr.errors import UserError
from lasr.pictures.read import Picture, read_picture
from lasr.pictures.write import Format, check_format, save_picture, software_tag
from tests.support.pictures import PROFILE, smooth


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
def test_written_pictures_come_back(
    tmp_path: Path, channels: int, dtype: type, kind: Format
) -> None:
    """Read by our reader, and PNG and TIFF by OpenCV, which shares nothing with the writer."""
    pixels = smooth(channels, dtype)
    if kind == "jpg" and channels in (2, 4):
        with pytest.raises(UserError, match="JPEG cannot hold"):
            check_format(Picture(pixels), 4, kind)
        return
    profile = PROFILE if channels > 2 else None
    strips = [pixels[:5], pixels[5:6], pixels[6:]]
    path = tmp_path / f"x.{kind}"
    save_picture(path, strips, pixels.shape, np.dtype(dtype), profile, "LA-SR test")
    assert software_tag(path) == "LA-SR test" and len(list(tmp_path.iterdir())) == 1
    back = read_picture(path)
    assert back.profile == profile
    spread = {1: [0], 2: [0, 0, 0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    if kind == "png" or (kind == "tiff" and channels != 2):
        assert back.pixels.dtype == dtype
        np.testing.assert_array_equal(back.pixels, pixels)
        theirs = cv2.imread(str(path), -1) if kind == "png" else tifffile.imread(path)
        order = [2, 1, 0, 3] if kind == "png" else [0, 1, 2, 3]
        ours = pixels[:, :, spread]
        ours = ours[:, :, order[: len(spread)]] if len(spread) > 1 else ours
        np.testing.assert_array_equal(theirs, ours.squeeze())
    else:
        assert back.pixels.dtype == (dtype if kind == "tiff" else np.uint8)
        expected, got = (
            (
                p[:, :, [0, 0, 0, -1] if p.shape[2] in (1, 2) else slice(None)]
                / np.iinfo(p.dtype).max
            )
            for p in (pixels, back.pixels)
        )
        if channels in (2, 4):  # what is invisible may take any colour
            expected, got = expected * expected[:, :, 3:], got * got[:, :, 3:]
        assert np.abs(expected[:, :, :3] - got[:, :, :3]).max() < 0.06


def test_pictures_beyond_a_formats_size_are_refused() -> None:
    with pytest.raises(UserError, match="80000 pixels are more than jpg can hold"):
        check_format(Picture(np.zeros((1, 20_000, 3), np.uint8)), 4, "jpg")


@pytest.mark.timeout(20)
def test_files_without_a_software_tag(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("x.png", "absent.png", "pipe.png"):
        assert software_tag(tmp_path / name) is None
