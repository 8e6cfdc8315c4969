"""Equations (1) to (5) against loops written from the paper's formulas, in float64 NumPy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support import matlab
from trainer.losses import (
    LossWeights,
    consistency,
    cont,
    content_encoders,
    content_sr,
    cosines,
    quality_encoders,
    quality_sr,
)

Matrix = NDArray[np.float64]
C = 48


def features(rows: int, seed: int) -> Tensor:
    """Features as CLIP's are: a direction in common, norms that differ."""
    rng = np.random.default_rng(seed)
    norms = rng.uniform(0.1, 30, (rows, 1))
    return torch.tensor((rng.normal(size=(rows, C)) + 0.5) * norms, dtype=torch.float32)


def cos(u: Matrix, v: Matrix) -> float:
    dot = sum(x * y for x, y in zip(u, v, strict=True))
    return dot / (math.sqrt(sum(x * x for x in u)) * math.sqrt(sum(y * y for y in v)))


def loop_cont(a: Matrix, b: Matrix) -> float:
    """Equation (1), term by term."""
    total = 0.0
    for i in range(len(a)):
        below = 0.0
        for k in range(len(a)):
            if k != i:
                below += math.exp(cos(a[i], b[k]))
        total += math.log(math.exp(cos(a[i], b[i])) / below)
    return -total / len(a)


def loop_direction(q: Matrix) -> Matrix:
    total = np.zeros(q.shape[1])
    for row in q:
        total += row / math.sqrt(sum(x * x for x in row))
    return total / len(q)


def loop_content_encoders(f_lr: Matrix, f_hr: Matrix, c_lr: Matrix, c_hr: Matrix) -> float:
    return loop_cont(np.concatenate((f_lr, f_hr)), np.concatenate((c_lr, c_hr)))


def loop_quality_encoders(f_lr: Matrix, f_hr: Matrix, low: Matrix, high: Matrix) -> float:
    """Equation (3), Q- and Q+ repeated to N rows each."""
    texts = [loop_direction(low)] * len(f_lr) + [loop_direction(high)] * len(f_hr)
    return loop_cont(np.concatenate((f_lr, f_hr)), np.stack(texts))


def loop_quality_sr(f_sr: Matrix, low: Matrix, high: Matrix) -> float:
    """Equation (4), as it is printed."""
    minus, plus, total = loop_direction(low), loop_direction(high), 0.0
    for row in f_sr:
        total += math.log(math.exp(cos(row, plus)) / math.exp(cos(row, minus)))
    return -total / len(f_sr)


def arguments(
    n: int, words: int
) -> dict[str, tuple[Callable[..., Tensor], Callable, list[Tensor]]]:
    f_lr, f_hr, c_lr, c_hr = (features(n, seed) for seed in range(4))
    low, high = features(words, 4), features(words, 5)
    return {
        "cont": (cont, loop_cont, [f_lr, c_lr]),
        "content_encoders": (content_encoders, loop_content_encoders, [f_lr, f_hr, c_lr, c_hr]),
        "content_sr": (content_sr, loop_cont, [f_hr, c_lr]),
        "quality_encoders": (quality_encoders, loop_quality_encoders, [f_lr, f_hr, low, high]),
        "quality_sr": (quality_sr, loop_quality_sr, [f_hr, low, high]),
    }


NAMES = list(arguments(2, 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "words"), [(2, 1), (3, 4), (16, 1)])
@pytest.mark.parametrize("autocast", [False, True])
def test_equals_the_papers_formula(name: str, n: int, words: int, autocast: bool) -> None:
    loss, loop, given = arguments(n, words)[name]
    expected = loop(*(x.double().numpy() for x in given))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = loss(*given)
    assert got.dtype == torch.float32
    assert got.shape == ()
    assert got.item() == pytest.approx(expected, abs=1e-6)
    double = loss(*(x.double() for x in given))
    assert double.dtype == torch.float64
    assert double.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_widened_first(name: str, dtype: torch.dtype) -> None:
    loss, loop, given = arguments(3, 2)[name]
    given = [x.to(dtype) for x in given]
    got = loss(*given)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loop(*(x.double().numpy() for x in given)), abs=1e-6)


def test_cosines_stay_float32_under_autocast() -> None:
    a, b = features(5, 0), features(7, 1)
    with torch.autocast("cpu", torch.bfloat16):
        got = cosines(a, b)
    assert got.dtype == torch.float32
    exact = [[cos(u, v) for v in b.double().numpy()] for u in a.double().numpy()]
    np.testing.assert_allclose(got.numpy(), exact, atol=3e-7)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    loss, _, given = arguments(3, 2)[name]
    given = [(x[:, :6] / x.norm()).double() for x in given]
    moving = 1 if name.endswith("_sr") else len(given)  # texts are constants to the SR network
    given[:moving] = [x.requires_grad_() for x in given[:moving]]
    assert torch.autograd.gradcheck(loss, given)


@pytest.mark.parametrize("name", ["content_sr", "quality_sr"])
def test_sr_terms_leave_the_text_encoder_alone(name: str) -> None:
    loss, _, given = arguments(3, 2)[name]
    for x in given:
        x.requires_grad_()
    loss(*given).backward()
    assert given[0].grad is not None
    assert all(x.grad is None for x in given[1:])


def test_a_batch_of_one_is_refused_where_the_sum_is_empty() -> None:
    f_lr, f_hr, c_lr, c_hr, low, high = (features(1, seed) for seed in range(6))
    with pytest.raises(ValueError, match=r"batch of 1 .* batch size of 2 or more") as refusal:
        content_sr(f_lr, c_lr)
    assert "\n" not in str(refusal.value)
    # Two rows, LR and HR, contrast with each other: the case that equation (3) is printed for.
    assert content_encoders(f_lr, f_hr, c_lr, c_hr).isfinite()
    assert quality_encoders(f_lr, f_hr, low, high).isfinite()


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 48\) and \(2, 48\)"):
        cont(features(3, 0), features(2, 1))


def test_only_directions_count_and_extremes_stay_finite() -> None:
    a, b = features(4, 0), features(4, 1)
    assert cont(a * 1e-6, b * 1e6).item() == pytest.approx(cont(a, b).item(), abs=1e-6)
    assert cont(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0
    assert cont(torch.eye(3), torch.eye(3)).item() == pytest.approx(math.log(2) - 1, abs=1e-6)


def test_total_is_equation_5() -> None:
    total = LossWeights().total(torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0))
    assert total.item() == pytest.approx(0.5 + 5 + 10)
    assert LossWeights(0, 0, 2).total(*torch.ones(3)).item() == 2
    assert LossWeights(0, 0, 2, 10).total(*torch.ones(4)).item() == 12


@pytest.mark.parametrize(("scale", "size"), [(4, (9, 7)), (2, (3, 16))])
def test_consistency_is_the_difference_after_matlabs_imresize(
    scale: int, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    sr = rng.uniform(-0.1, 1.1, (2, 3, scale * size[0], scale * size[1])).astype(np.float32)
    lr = rng.uniform(0, 1, (2, 3, *size)).astype(np.float32)
    shrunk = [matlab.imresize(picture.transpose(1, 2, 0), 1 / scale) for picture in sr]
    expected = np.abs(np.stack(shrunk).transpose(0, 3, 1, 2) - lr).mean()
    pictures = torch.from_numpy(sr).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # of the networks; the term is float32
        found = consistency(pictures, torch.from_numpy(lr))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert pictures.grad is not None
    # Each LR pixel is a mean of weights that sum to 1, so a shift of SR shifts it by as much.
    plain = torch.full_like(torch.from_numpy(lr), 0.5)
    grey = torch.full_like(pictures, 0.75)
    assert consistency(grey, plain).item() == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(ValueError, match="not a whole multiple"):
        consistency(pictures[..., :-1], torch.from_numpy(lr))
