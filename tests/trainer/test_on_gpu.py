"""The trainer's paths on a GPU against the CPU: steps, graphs, resuming, memory, pictures."""

import copy
import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from lasr.errors import UserError
from schemas.manifest import open_manifest
from tests.support.training import config, first_batch
from tests.support.weights import load_encoders, load_rrdb
from trainer import loop
from trainer.config import TrainConfig
from trainer.data.dataset import COLUMNS, Batch, Patches
from trainer.data.prefetch import AsyncNumbers, prefetch
from trainer.distributed import World
from trainer.models.compiled import WARM_UP, Captured
from trainer.models.vgg import untrained_vgg
from trainer.step import TrainStep
from trainer.upscale.engines import make_engine
from trainer.upscale.tiles import Tiling, upscale_array

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """The same convolution kernels in every run; memory is given back."""
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def step_on(
    device: torch.device,
    settings: TrainConfig,
    models: Path,
    world: World | None = None,
) -> TrainStep:
    sr_network = load_rrdb(models / "sr.safetensors").to(device)
    encoders = load_encoders(settings.clip_name, device)
    vgg = untrained_vgg().to(device)
    return TrainStep(settings, sr_network, encoders, vgg, world)


def run(step: TrainStep, batches: list[Batch]) -> list[dict[str, float]]:
    found = [step(batch, step.texts_of(batch)).tolist() for batch in batches]
    return [dict(zip(step.names, numbers, strict=True)) for numbers in found]


def batches_of(manifest: Path, steps: int, size: int = 2) -> list[Batch]:
    data = Patches(open_manifest(manifest, COLUMNS))
    return [data.batch(step, size) for step in range(steps)]


@pytest.mark.parametrize(
    ("precision", "bound"),
    [("float32", 2e-4), ("tf32", 5e-3), ("bfloat16", 3e-2), ("float16", 1e-2)],
)
def test_numbers_and_gradients_are_the_cpus(
    manifest: Path, models: Path, tmp_path: Path, precision: str, bound: float
) -> None:
    batch = first_batch(manifest, 4)
    steps = [
        step_on(CPU, config(manifest, models, tmp_path, precision="float32"), models),
        step_on(GPU, config(manifest, models, tmp_path, precision=precision), models),
    ]
    (expected,), (found,) = (run(step, [batch]) for step in steps)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=10 * bound, abs=bound), name
    for kind in ("sr_parameters", "encoder_parameters"):
        right, ours = (
            torch.cat([p.grad.flatten().cpu() for p in getattr(step, kind)]) for step in steps
        )
        assert (ours - right).norm() / right.norm() < 8 * bound, kind


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_captured_step_is_the_same_step(
    manifest: Path, models: Path, tmp_path: Path, precision: str
) -> None:
    """Numbers and weights after steps before, at and after the capture; with a moving average."""
    batches = batches_of(manifest, WARM_UP + 4)
    found = {}
    for graph in ("off", "auto"):
        settings = config(
            manifest, models, tmp_path, cuda_graph=graph, precision=precision, ema=0.9
        )
        step = step_on(GPU, settings, models)
        numbers = run(step, batches)
        found[graph] = numbers, copy.deepcopy(step.state())
        assert isinstance(step.launch, Captured) == (graph == "auto")
    assert isinstance(step.launch, Captured) and step.launch.graph is not None
    for before, after in zip(found["off"][0], found["auto"][0], strict=True):
        assert after == pytest.approx(before, rel=1e-5, abs=1e-6)
    for part in ("sr", "encoders", "ema"):
        for name, tensor in found["off"][1][part].items():
            torch.testing.assert_close(found["auto"][1][part][name], tensor, atol=1e-6, rtol=1e-5)
    group = found["auto"][1]["optimizer"]["param_groups"][0]  # type: ignore[index]
    assert group["capturable"] is False  # a CPU resumes it


def test_a_broken_number_changes_no_weight_of_a_captured_step(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    step = step_on(GPU, config(manifest, models, tmp_path), models)
    batches = batches_of(manifest, WARM_UP + 2)
    run(step, batches)
    before = copy.deepcopy(step.state())
    broken = dataclasses.replace(batches[0], lr=batches[0].lr * torch.nan)
    (numbers,) = run(step, [broken])
    assert not np.isfinite(numbers["total"])
    for part in ("sr", "encoders"):
        for name, tensor in step.state()[part].items():
            assert torch.equal(tensor, before[part][name]), name  # type: ignore[arg-type]
    (numbers,) = run(step, [batches[1]])
    assert np.isfinite(numbers["total"])


def test_a_step_that_cannot_be_captured_runs_as_before(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """A network that waits for the device, which a graph cannot hold."""
    step = step_on(GPU, config(manifest, models, tmp_path), models)
    forward = step.sr_network.forward

    def waits(x: Tensor) -> Tensor:
        assert x.mean().item() > -1
        return forward(x)

    step.sr_network.forward = waits  # type: ignore[method-assign]
    numbers = run(step, batches_of(manifest, WARM_UP + 3))
    assert all(np.isfinite(list(values.values())).all() for values in numbers)
    assert isinstance(step.launch, Captured) and step.launch.graph is None


@pytest.mark.parametrize("graph", ["off", "auto"])
def test_the_host_never_waits_for_a_step(
    manifest: Path, models: Path, tmp_path: Path, graph: str
) -> None:
    step = step_on(GPU, config(manifest, models, tmp_path, cuda_graph=graph), models)
    batches = batches_of(manifest, WARM_UP + 2)
    pairs = list(prefetch(iter(batches), step.texts_of, GPU))
    for batch, tokens in pairs[: WARM_UP + 1]:
        step(batch, tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch, tokens = pairs[-1]
        AsyncNumbers(step(batch, tokens))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_copies_are_pinned_and_read_what_their_step_computed(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """Numbers that are read late are those of their own step, although graphs reuse memory."""
    settings = config(manifest, models, tmp_path)
    batches = batches_of(manifest, WARM_UP + 5)
    expected = run(step_on(GPU, settings, models), batches)
    step = step_on(GPU, settings, models)
    pairs = list(prefetch(iter(batches), step.texts_of, GPU))
    assert all(x.is_pinned() for batch, tokens in pairs for x in (batch.lr, batch.hr, tokens))
    late = [AsyncNumbers(step(batch, tokens)) for batch, tokens in pairs]
    for numbers, values in zip(late, expected, strict=True):
        assert numbers.read() == pytest.approx(list(values.values()), rel=1e-4, abs=1e-5)


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "stats.jsonl").read_text().splitlines())
    return {line["step"]: line["total"] for line in lines}


def test_a_run_resumes_on_a_gpu_and_on_the_other_device(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(
        manifest, models, tmp_path / "whole", steps=7, precision="float32", device="cuda"
    )
    loop.train(settings)
    for name, second in (("resumed", "cuda"), ("moved", "cpu")):
        out = {"out": tmp_path / name}
        loop.train(settings.model_copy(update=out | {"steps": 5}))
        # The device is what differs, as when a run moves to another machine.
        path = tmp_path / name / "config.json"
        path.write_text(path.read_text().replace('"cuda"', f'"{second}"'))
        loop.train(settings.model_copy(update=out | {"device": second}))
        bound = 1e-5 if second == "cuda" else 1e-3
        assert losses(tmp_path / name) == pytest.approx(
            losses(settings.folder), rel=bound, abs=bound
        )


def test_out_of_memory_is_one_line(manifest: Path, models: Path, tmp_path: Path) -> None:
    settings = config(manifest, models, tmp_path / "run", device="cuda", batch_size=16)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(60e6 / total)
    with pytest.raises(UserError, match="memory"):
        loop.train(settings)


def one_of_two(rank: int, settings: TrainConfig, models: Path, port: int, folder: Path) -> None:
    torch.cuda.set_device(0)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    step = step_on(GPU, settings, models, World(rank, 2))
    batch = Patches(open_manifest(settings.manifest, COLUMNS)).batch(
        0, settings.batch_size, rank, 2
    )
    torch.save(run(step, [batch])[0], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_a_card(manifest: Path, models: Path, tmp_path: Path) -> None:
    """By gloo, which a single card allows; NCCL wants one for each."""
    settings = config(manifest, models, tmp_path, batch_size=4, precision="float32")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (settings, models, port, tmp_path), nprocs=2)
    (expected,) = run(step_on(GPU, settings, models), [first_batch(manifest, 4)])
    for rank in range(2):
        found_numbers: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            assert found_numbers[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_compiled_step_is_the_same_step(manifest: Path, models: Path, tmp_path: Path) -> None:
    """In float32: in half precision, fused kernels round less often than those in their place."""
    batches = batches_of(manifest, WARM_UP + 2)
    plain, compiled = (
        run(
            step_on(
                GPU,
                config(manifest, models, tmp_path, compile=mode, precision="float32"),
                models,
            ),
            batches,
        )
        for mode in ("off", "default")
    )
    for expected, found in zip(plain, compiled, strict=True):
        assert found == pytest.approx(expected, rel=5e-2, abs=5e-3)


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1), ("float16", 2)])
def test_pictures_are_the_cpus(models: Path, photographs: Path, precision: Any, bound: int) -> None:
    """RGB, alpha and 16 bit, in several tiles."""
    picture = np.asarray(Image.open(photographs / "china.jpg"))[100:260, 100:301]
    alpha = np.dstack([picture, picture[:, ::-1, :1]])
    network = load_rrdb(models / "sr.safetensors")
    for pixels in (picture, alpha, picture.astype(np.uint16) * 257):
        cpu, gpu = (
            upscale_array(
                make_engine(copy.deepcopy(network), device, precision=p), pixels, 4, Tiling(64, 16)
            )
            for device, p in ((CPU, "float32"), (GPU, precision))
        )
        apart = np.abs(cpu.astype(int) - gpu.astype(int)).max() / (np.iinfo(pixels.dtype).max / 255)
        # Colours under little opacity are divided by it.
        assert apart <= (bound if pixels is not alpha else 24)


def test_upscaling_continues_with_smaller_tiles(models: Path, photographs: Path) -> None:
    picture = np.asarray(Image.open(photographs / "china.jpg"))[:400, :600]
    picture = np.tile(picture, (2, 2, 1))
    network = load_rrdb(models / "sr.safetensors")
    engine = make_engine(network, GPU, precision="float32")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    taken = torch.cuda.memory_allocated()
    expected = upscale_array(engine, picture, 4, Tiling(512, 16))
    needed = torch.cuda.max_memory_allocated() - taken
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((taken + 0.7 * needed) / total)
    tiling = Tiling(512, 16)
    found = upscale_array(engine, picture, 4, tiling)
    assert tiling.tile < 512
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2
