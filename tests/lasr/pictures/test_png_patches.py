"""Patches: decoded like by Pillow, refused before they take memory."""

import io
import resource
import zlib

import numpy as np
import pytest
from PIL import Image

from lasr.pictures import png as module
from lasr.pictures.png import decode_patch, encode_png
from tests.support.bad_rows import bad_pictures, claims

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (56, 56, 3), dtype=np.uint8)
GOOD, LARGE = encode_png(PIXELS), encode_png(RNG.integers(0, 256, (224, 224, 3), dtype=np.uint8))


def test_patches_decode_as_pillow_does() -> None:
    for content in (GOOD, np.frombuffer(GOOD, np.uint8)):
        assert np.array_equal(decode_patch(content, 56), PIXELS)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).quantize(16).save(buffer, "PNG")  # a palette, by another program
    with Image.open(buffer) as image:
        assert np.array_equal(decode_patch(buffer.getvalue(), 56), image.convert("RGB"))


@pytest.mark.parametrize("kind", bad_pictures(GOOD, LARGE))
def test_bad_pictures_are_refused_with_a_reason(kind: str) -> None:
    content = bad_pictures(GOOD, LARGE)[kind]
    with pytest.raises(ValueError, match=r"^(has|is) .*picture"):
        decode_patch(None if content == "null" else content, 56)


@pytest.mark.parametrize("content", [claims(60_000, 60_000), LARGE, GOOD[:-1], GOOD[:50], b""])
def test_no_decoder_sees_a_wrong_size_or_a_cut_file(
    monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(module, "decode_png", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError):
        decode_patch(content, 56)


def test_a_whole_picture_of_a_huge_size_takes_no_memory() -> None:
    """20,000 x 20,000 pixels in black and white: 50 MB of zeros in 220 kB, 1.2 GB as RGB."""
    content = claims(20_000, 20_000, rows=20_000, depth=1, colour=0)
    assert len(zlib.compress(content)) < 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="20000x20000 pixels, expected 224x224"):
        decode_patch(content, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
