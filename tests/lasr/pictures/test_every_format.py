"""Hundreds of files, one for each combination of format, depth, layout, profile and orientation.

Each is compared with the pixels that were written, converted by formulas in float64 or by
LittleCMS; no reference comes from the reader itself. `tests/support/formats/` writes the files.
"""

import numpy as np
import pytest

from lasr.pictures.read import LARGEST, decode_picture, limited
from tests.support.formats import coded, plain, png, tiff  # noqa: F401 - they fill the table
from tests.support.formats.table import CASES


def test_the_table_is_large() -> None:
    assert len(CASES) > 500


@pytest.mark.parametrize("name", CASES)
def test_a_file_shows_what_was_written(name: str) -> None:
    content, expected = CASES[name]()
    picture = decode_picture(content, limited(LARGEST))
    full = 2.0**expected.bits - 1
    assert picture.pixels.dtype == (np.uint8 if expected.bits == 8 else np.uint16)
    assert picture.pixels.shape == expected.pixels.shape
    assert (picture.alpha is None) == (expected.alpha is None)
    visible = np.ones(expected.pixels.shape[:2], bool)
    if picture.alpha is not None and expected.alpha is not None:
        np.testing.assert_allclose(picture.alpha / full, expected.alpha, atol=expected.close / 255)
        # Where nearly transparent, premultiplied colours have few digits.
        visible = expected.alpha > 0.2 if "extras-1" in name else visible
    error = np.abs(picture.pixels / full - expected.pixels)[visible].max() * 255
    tolerance = expected.close * (6 if "extras-1" in name else 1)
    assert error <= tolerance + 1e-6, f"{error:.3f} of 255"
    assert not picture.notes
