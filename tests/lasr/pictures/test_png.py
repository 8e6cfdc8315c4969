"""PNG: patches through OpenCV, and rows by our own writer, each judged by another reader."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lasr.pictures.png import decode_png, encode_png
from lasr.pictures.read import read_picture
from lasr.pictures.write import save_picture
from tests.support.pictures import smooth

RNG = np.random.default_rng(0)


def test_noise_survives_every_png_filter(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65536, (9, 11, 4), dtype=np.uint16)
    save_picture(tmp_path / "n.png", iter([pixels]), pixels.shape, pixels.dtype, "t")
    np.testing.assert_array_equal(read_picture(tmp_path / "n.png").planes, pixels)
    with pytest.raises(ValueError, match="8 rows of 9"):
        save_picture(tmp_path / "m.png", [pixels[:8]], pixels.shape, pixels.dtype, "t")
    assert not (tmp_path / "m.png").exists()


def test_patches_come_back_and_pillow_reads_the_same() -> None:
    pixels = smooth(3)
    content = encode_png(pixels)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)
    np.testing.assert_array_equal(decode_png(content), pixels)
    np.testing.assert_array_equal(decode_png(np.frombuffer(content, np.uint8)), pixels)


def test_grey_and_deep_pngs_decode_to_8_bit_rgb() -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth(1, np.uint16)[:, :, 0]).save(buffer, "PNG")
    pixels = decode_png(buffer.getvalue())
    assert pixels.dtype == np.uint8 and pixels.shape == (23, 37, 3)


@pytest.mark.parametrize("content", [b"", b"no picture", encode_png(smooth(3))[:40]])
def test_damaged_content_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable PNG"):
        decode_png(content)


def test_a_header_that_claims_a_huge_size_is_a_value_error() -> None:
    content = bytearray(encode_png(smooth(3)))
    content[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in IHDR
    with pytest.raises(ValueError, match="not a readable PNG"):
        decode_png(bytes(content))
