"""MATLAB's bicubic: against its algorithm in NumPy, and against pyiqa's port."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lasr.pictures.read import read_rgb
from tests.support import matlab
from trainer.evaluate.resize import cut_to_multiple, enlarge, reduce


@pytest.mark.parametrize("scale", [2, 4, 16])
def test_equals_matlab_up_to_the_border(photographs: Path, scale: int) -> None:
    picture = cut_to_multiple(read_rgb(photographs / "chelsea.png")[:, :150, :203], scale)
    array = picture.permute(1, 2, 0).double().numpy()
    small = reduce(picture, scale)
    expected = torch.from_numpy(matlab.imresize(array, 1 / scale)).permute(2, 0, 1)
    torch.testing.assert_close(small, expected, atol=1e-6, rtol=0)
    large = torch.from_numpy(matlab.imresize(expected.permute(1, 2, 0).numpy(), scale))
    torch.testing.assert_close(enlarge(small, scale), large.permute(2, 0, 1), atol=2e-6, rtol=0)


def test_equals_pyiqas(photographs: Path) -> None:
    matlab_utils = pytest.importorskip("pyiqa.matlab_utils")
    picture = read_rgb(photographs / "coffee.png")[:, :80, :64].double()
    for ours, scale in ((reduce(picture, 4), 0.25), (enlarge(picture, 4), 4)):
        theirs = matlab_utils.imresize(picture[None], scale=scale)[0]
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_sizes() -> None:
    picture = torch.rand(3, 9, 14)
    assert cut_to_multiple(picture, 4).equal(picture[:, :8, :12])
    assert cut_to_multiple(picture[:, :8, :12], 4).shape == (3, 8, 12)
    with pytest.raises(ValueError, match="14x9 is not a multiple of 4"):
        reduce(picture, 4)
    assert enlarge(torch.full((3, 1, 1), 0.5), 4).allclose(torch.full((3, 4, 4), 0.5).double())
    assert np.isfinite(reduce(torch.rand(3, 4, 4), 4).numpy()).all()
