"""What the benchmarks count is counted by hand as well, and they run as they are typed."""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import train_step
from tests.support import processes
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


def in_a_fork(name: str, argv: list[str], variables: dict[str, str], out: Path) -> None:
    """`python -m benchmarks.NAME`, its own processes being forks like this one."""
    os.environ.update(variables)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
    module = importlib.import_module(f"benchmarks.{name}")

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        log = Path(f"{out}.{len(list(out.parent.iterdir()))}")
        child = command[command.index(f"benchmarks.{name}") + 1 :]
        return SimpleNamespace(stdout=started(name, child, env, log))

    vars(module).update(
        subprocess=SimpleNamespace(run=run, PIPE=None), get_context=lambda _: processes.context()
    )
    status = module.main(argv)
    sys.stdout.flush()
    os._exit(status)


def started(name: str, argv: list[str], variables: dict[str, str], out: Path) -> str:
    """What the benchmark printed."""
    process = processes.context().Process(target=in_a_fork, args=(name, argv, variables, out))
    process.start()
    process.join()
    assert process.exitcode == 0
    return out.read_text()


@pytest.mark.parametrize(
    ("name", "flags", "answer"),
    [
        ("loader", "--photographs 7 --rounds 1 --workers 1", "patches/s"),
        (
            "build",
            "--photographs 2 --rounds 1 --growth 2 --width 360 --k 2",
            "6 of the loop's 6 patches have the same position and words",
        ),
    ],
)
def test_benchmarks_run_as_typed(name: str, flags: str, answer: str, tmp_path: Path) -> None:
    assert answer in started(name, flags.split(), {}, tmp_path / "log")
