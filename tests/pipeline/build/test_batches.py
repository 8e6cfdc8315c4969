"""Photographs in batches by shape: how often the depth network runs, and for whom."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.build.batches import estimate
from pipeline.build.workers import Decoded, Estimated
from pipeline.stages.depth import DepthModel
from pipeline.stages.depth_anything import PATCH, is_common
from pipeline.stages.images import Photograph


def stream(shapes: Sequence[tuple[int, int]]) -> Iterator[Any]:
    for number, shape in enumerate(shapes):
        photograph = Photograph(None, str(number), np.zeros((1, 1, 3), np.uint8))  # type: ignore[arg-type]
        yield Decoded(photograph, np.full(shape, number, np.float32))


def shapes(number: int, share: float = 0.7) -> list[tuple[int, int]]:
    """Prepared sizes: common ones in both orientations, and free ones, as from a folder of DF2K."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(number):
        ratio = rng.choice([3 / 2, 4 / 3, 16 / 9]) if rng.random() < share else rng.uniform(1, 2.5)
        sides = 518, round(518 * ratio / PATCH) * PATCH
        found.append(sides if rng.random() < 0.8 else sides[::-1])
    return found


def test_the_network_runs_little_more_than_once_a_photograph_and_order_stays() -> None:
    runs: list[tuple[int, int]] = []  # size of the call, photographs in it that were wanted

    def predict(prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert len({one.shape for one in prepared}) == 1
        assert len(prepared) == (4 if is_common(prepared[0].shape) else 1)
        runs.append((len(prepared), len({one.flat[0] for one in prepared})))
        return list(prepared)

    depth = DepthModel("x", lambda p: p, predict, 4, True, is_common)
    wanted = shapes(1000)
    found = list(estimate(stream(wanted), SimpleNamespace(depth=depth)))  # type: ignore[arg-type]
    assert [one.distance.flat[0] for one in found] == list(range(1000))  # type: ignore[union-attr]
    assert sum(useful for _, useful in runs) == 1000
    assert sum(size for size, _ in runs) <= 1100


@pytest.mark.parametrize("memory_for", [0, 1])
def test_out_of_memory_ends_in_a_true_single(memory_for: int) -> None:
    """Padded alone it fails as well; only a call of one photograph fits, or not even that."""
    calls: list[int] = []

    def predict(prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        calls.append(len(prepared))
        if len(prepared) > memory_for:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return list(prepared)

    depth = DepthModel("x", lambda p: p, predict, 4, True)
    models: Any = SimpleNamespace(depth=depth)
    if memory_for:
        found = list(estimate(stream([(14, 14)] * 3), models))
        assert all(isinstance(one, Estimated) for one in found)
        assert calls == [4, 4, 1, 4, 1, 4, 1]
    else:
        item = next(iter(stream([(14, 14)])))
        from pipeline.build.batches import _estimate_alone

        failure = _estimate_alone(item, models)
        assert isinstance(failure, RuntimeError) and calls == [4, 1]
