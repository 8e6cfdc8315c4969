"""Weights cast once a step against autocast, which casts them at each use."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.training import first_batch, make_step
from trainer.models.half import HalfWeights
from trainer.step import TrainStep


def step_of(manifest: Path, models: Path, out: Path, half: bool, **changes: Any) -> TrainStep:
    """A step on the CPU; half: with half weights, as it is created."""
    step = make_step(manifest, models, out, **changes)
    if not half:
        step.half_weights = HalfWeights((), None)
    return step


def gradients(step: TrainStep) -> Tensor:
    trained = [*step.sr_parameters, *step.encoder_parameters]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)
    return torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"sr_as_low_quality": 0.5}])
def test_a_step_is_as_near_to_float32_as_under_autocast(
    manifest: Path, models: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    batch, found = first_batch(manifest, 4), {}
    for name, precision in (("float32", "float32"), ("autocast", "bfloat16"), ("half", "bfloat16")):
        step = step_of(manifest, models, tmp_path, name == "half", precision=precision, **changes)
        numbers = step(batch, step.texts_of(batch))
        found[name] = numbers, gradients(step)
    right, norm = found["float32"][1], found["float32"][1].norm()
    errors = {name: float((of - right).norm() / norm) for name, (_, of) in found.items()}
    assert 0 < errors["half"] < 1.5 * errors["autocast"] < 0.2
    torch.testing.assert_close(found["half"][0], found["autocast"][0], atol=2e-2, rtol=2e-2)
    assert not torch.equal(found["half"][1], found["autocast"][1])


def test_float32_stays_bit_for_bit(manifest: Path, models: Path, tmp_path: Path) -> None:
    batch, found = first_batch(manifest, 2), []
    for half in (False, True):
        step = step_of(manifest, models, tmp_path, half, precision="float32")
        found.append((step(batch, step.texts_of(batch)), gradients(step)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_steps_use_the_weights_of_the_step_before(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """Also those that were loaded, and the float32 weights are what is saved and averaged."""
    batch = first_batch(manifest, 2)
    step = step_of(manifest, models, tmp_path, True, precision="bfloat16", lr=1e-2, ema=0.5)
    tokens = step.texts_of(batch)
    first = step(batch, tokens)
    state = copy.deepcopy(step.state())
    second = step(batch, tokens)
    assert abs(first[0] - second[0]) > 1e-3
    other = step_of(manifest, models, tmp_path, True, precision="bfloat16", lr=1e-2, ema=0.5)
    other.load_state(state)
    assert torch.equal(other(batch, tokens), second)
    for part in ("sr", "encoders", "ema"):
        assert {t.dtype for t in state[part].values() if t.is_floating_point()} == {torch.float32}  # type: ignore[attr-defined]


def test_frozen_encoders_receive_no_gradient(manifest: Path, models: Path, tmp_path: Path) -> None:
    batch = first_batch(manifest, 2)
    step = step_of(manifest, models, tmp_path, True, precision="bfloat16", freeze_encoders=True)
    step(batch, step.texts_of(batch))
    assert all(p.grad is None for p in step.encoders.parameters())
    assert all(p.grad is not None for p in step.sr_parameters)


def test_layers_have_their_own_weights_back_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    weights = list(network.parameters())
    with pytest.raises(RuntimeError, match="stop"), HalfWeights([network], torch.bfloat16):
        assert [p.dtype for p in network[0].parameters()] == [torch.bfloat16] * 2
        assert network[1].weight is weights[2]  # norms compute in float32 under autocast
        raise RuntimeError("stop")
    assert all(a is b for a, b in zip(network.parameters(), weights, strict=True))
