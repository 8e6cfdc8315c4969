"""What the benchmarks count is counted by hand as well, and they run as they are typed."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import train_step
from benchmarks.device import __main__ as device
from benchmarks.device.profiling import by_kind
from benchmarks.device.record import Part
from lasr.errors import UserError
from tests.support import processes
from trainer.config import TrainConfig
from trainer.step import TrainStep

pytestmark = pytest.mark.slow


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
        ("rerun", "--photographs 3 --added 1 --keep FOLDER", "| 48 | 1 new |"),
        ("loader", "--photographs 7 --rounds 1 --workers 1", "patches/s"),
        (
            "build",
            "--photographs 2 --rounds 1 --growth 0 --width 360 --k 2 --profile test --ways ours",
            "7 of the loop's 7 patches have the same position and words",
        ),
    ],
)
def test_benchmarks_run_as_typed(name: str, flags: str, answer: str, tmp_path: Path) -> None:
    flags = flags.replace("FOLDER", str(tmp_path / "kept"))
    assert answer in started(name, flags.split(), {}, tmp_path / "log")


def device_part(name: str, folder: Path, seconds: float = 100) -> list[dict[str, Any]]:
    """Run a part of `benchmarks.device` in this process, at its small size."""
    part = Part(name, "cpu", True, folder, folder / "rows.jsonl", seconds)
    importlib.import_module(f"benchmarks.device.{name}").measure(part)
    return part.rows()


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("captions", ["network, float32", "network, bfloat16", "clip-interrogator, one by one"]),
        ("depth", ["tiny, bfloat16, batch 2, 70x112"]),
        ("upscale", ["LA-SR files, 24x24", "spandrel float32 files, 24x24"]),
        ("train", ["steps until 3"]),
        ("blocks", ["dense block, as it is", "CLIP block, autocast"]),
    ],
)
def test_parts_of_the_device_benchmark_measure(
    name: str, figures: list[str], tmp_path: Path
) -> None:
    """The same code as on a GPU, with small networks."""
    found = device_part(name, tmp_path)
    assert [row for row in found if "error" in row] == []
    values = {row["what"]: row.get("value", 0) for row in found}
    assert all(values[figure] > 0 for figure in figures), values


def test_kernels_are_counted_by_kind() -> None:
    kernels = [
        ("triton_poi_fused_cat_leaky_relu_3", 1.0, 2),
        ("nvjet_hsh_128x256_64x4", 5.0, 1),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", 4.0, 3),
        ("void cudnn::ops::nhwcToNchwKernel", 2.0, 1),
        ("void at::native::max_pool_backward_nhwc", 0.5, 1),
        ("void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda", 0.25, 9),
    ]
    assert list(by_kind(kernels).items()) == [
        ("convolution", (6.0, 4)),
        ("matrix product", (5.0, 1)),
        ("fused", (1.0, 2)),
        ("pooling and resizing", (0.5, 1)),
        ("copy and cast", (0.25, 9)),
    ]


def test_a_part_that_fails_or_hangs_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had measured stays."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setattr(device, "PARTS", {"raises": 0.3, "dies": 0.3, "hangs": 0.1, "works": 0.3})
    monkeypatch.setattr(device, "MODULES", "faulty_{}")
    for name in device.PARTS:
        shutil.copy(tmp_path / "faulty.py", tmp_path / f"faulty_{name}.py")
    monkeypatch.syspath_prepend(tmp_path)
    options = device.DeviceBenchmark(minutes=1.5, out=tmp_path / "out" / "device.json")
    rows = device.measure_all(options)
    said = {row["part"]: row.get("error") for row in rows if row.get("error")}
    assert "no such luck (faulty_raises.py:" in said["raises"] and "ended with" in said["dies"]
    assert "ended at its" in said["hangs"] and "works" not in said
    assert sum(row.get("what") == "measured before" for row in rows) == 4
    saved = json.loads((tmp_path / "out" / "device.json").read_text())
    assert saved["rows"] == rows and "torch" in saved["machine"]
    assert "| works | measured before | 7 ms |" in (tmp_path / "out" / "device.md").read_text()
    with pytest.raises(UserError, match="no part walk"):
        device.measure_all(device.DeviceBenchmark(only=["walk"]))


FAULTY = """
import os, signal, time

def measure(part):
    part.row("measured before", 7, "ms")
    if part.name == "raises":
        raise ValueError("no such luck")
    if part.name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if part.name == "hangs":
        time.sleep(1000)
"""
