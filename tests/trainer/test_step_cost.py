"""What a step costs, counted without a GPU: waiting of the host, and memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import train_step
from tests.support.training import first_batch, make_step
from trainer.config import TrainConfig

aten: Any = torch.ops.aten
# Each of them makes the host wait for a GPU, to learn a value or how large a result is.
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal, aten.masked_select,
    aten._unique2, aten.unique_consecutive, aten.unique_dim, aten.repeat_interleave, aten.bincount,
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a GPU."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert function.overloadpacket not in WAITING, f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.9}, {"freeze_encoders": True}, {"weight_vgg": 0}]
)
def test_the_host_waits_for_nothing(
    manifest: Path, models: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    step, batch = make_step(manifest, models, tmp_path, **changes), first_batch(manifest, 2)
    tokens = step.texts_of(batch)
    with NoWaiting():
        for _ in range(2):
            step(batch, tokens)
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        step(batch, tokens).max().item()


def test_memory_at_the_papers_setting() -> None:
    """ViT-L/14, RRDB-23 and VGG19 at batch 16 in float32.

    Weights, gradients and moments are 7.3 GB of it, the activations of the SR network's half 20 GB
    and those of the encoders' 13 GB: both at a time would be more than is allowed here.
    """
    settings = TrainConfig.model_validate({"manifest": "none"})
    peak = train_step.count_memory(settings, "paper", train_step.random_batch(16, 0))
    assert 20e9 < peak < 29e9
