"""What the benchmarks count is counted by hand as well, and they run as they are typed."""

import subprocess
import sys

import pytest
import torch

from benchmarks import train_step
from tests.support.servers import ROOT
from trainer.config import TrainConfig
from trainer.step import TrainStep


def test_the_papers_step_computes_what_it_needs_and_no_more() -> None:
    """Forward passes counted by hand; gradients of weights, of pictures, or of both."""
    settings = TrainConfig.model_validate({"manifest": "none"})
    found = train_step.count_flops(settings, "paper", train_step.random_batch(16, 0))
    tera = {name: flops / 1e12 for name, flops in found.items()}
    tokens, width, layers = 257, 1024, 24
    a_token = layers * (12 * width**2 + 2 * tokens * width)  # projections and MLP, attention
    by_hand = 2 * 16 * (tokens * a_token + (tokens - 1) * 3 * 14**2 * width) / 1e12
    assert tera["image encoder, HR"] == pytest.approx(by_hand, rel=0.01)
    assert tera["image encoder, SR"] == tera["image encoder, HR"]
    # One gradient of the pictures through E_I and VGG, two gradients through the SR network.
    sr = 2 * tera["SR network"] + tera["image encoder, SR"] + 16 / 17 * tera["VGG"]
    assert tera["backward, SR network"] == pytest.approx(sr, rel=0.02)
    encoders = tera["image encoder, LR"] + tera["image encoder, HR"] + tera["text encoder"]
    assert tera["backward, encoders"] == pytest.approx(2 * encoders, rel=0.02)
    assert sum(tera.values()) == pytest.approx(21.6, abs=0.1)


def test_the_plain_step_trains_alike() -> None:
    settings = TrainConfig.model_validate({"manifest": "none", "batch_size": 2})
    cpu = torch.device("cpu")
    batches = [train_step.random_batch(2, seed) for seed in range(2)]
    ours = TrainStep(settings, *train_step.networks("small", cpu))
    plain = train_step.PlainStep(settings, *train_step.networks("small", cpu))
    tokens = [ours.texts_of(batch) for batch in batches]
    assert train_step.check_equal(ours, plain, batches, tokens) < 1e-4
    for a, b in zip(ours.encoders.parameters(), plain.encoders.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "flags", "answer"),
    [
        ("loader", ["--photographs", "7", "--rounds", "1", "--workers", "1"], "patches/s"),
        ("build", ["--photographs", "2", "--rounds", "1", "--growth", "2"], "photographs/s"),
    ],
)
def test_benchmarks_run_as_typed(name: str, flags: list[str], answer: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout
