"""Several processes: the loss and gradients of one, and a run under the real torchrun."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schemas.manifest import open_manifest
from tests.support.upstream import save_clip
from tests.support.weights import load_encoders, load_rrdb
from trainer import distributed, loop
from trainer.config import TrainConfig
from trainer.data.dataset import COLUMNS, Patches
from trainer.distributed import World
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network
from trainer.models.vgg import untrained_vgg
from trainer.step import TrainStep

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP and a small SR network as files."""
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_network(untrained_rrdb(8, 1, 8), folder, "sr")
    return folder


def config(manifest: Path, models: Path, out: Path, **changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "manifest": manifest, "out": out, "profile": "offline", "clip": str(models / "clip"),
        "sr_init": str(models / "sr.safetensors"), "batch_size": 4, "log_every": 1, "steps": 6,
        "sample_every": 100, "checkpoint_every": 3, "workers": 1,
    }  # fmt: skip
    return TrainConfig(**(plain | changes))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def numbers_and_gradients(settings: TrainConfig, world: World) -> dict[str, Tensor]:
    """One step in float64, where a wrong factor cannot hide behind rounding."""
    encoders = load_encoders(settings.clip_name, torch.device("cpu")).double()
    step = TrainStep(
        settings, load_rrdb(settings.sr_name).double(), encoders, untrained_vgg().double(), world
    )
    batch = Patches(open_manifest(settings.manifest, COLUMNS)).batch(
        0, settings.batch_size, world.rank, world.size
    )
    lr, hr = batch.lr.double(), batch.hr.double()
    object.__setattr__(batch, "lr", lr), object.__setattr__(batch, "hr", hr)
    numbers = step(batch, step.texts_of(batch))
    found = dict(zip(step.names, numbers, strict=True))
    for kind, network in (("sr", step.sr_network), ("encoders", encoders)):
        assert isinstance(network, nn.Module)
        found |= {
            f"{kind}.{k}": p.grad for k, p in network.named_parameters() if p.grad is not None
        }
    return found


def one_of_two(rank: int, all_settings: list[TrainConfig], port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    with distributed.process_group("cpu") as (world, _):
        found = [numbers_and_gradients(settings, world) for settings in all_settings]
        torch.save(found, folder / f"{rank}.pt")


def test_two_processes_give_the_loss_and_gradients_of_one(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """2x8 equals 1x16, in every term, norm and gradient, in both processes."""
    words = {"bad": ["bad", "blurry"], "good": ["good", "sharp", "clean"]}
    all_settings = [
        config(manifest, models, tmp_path, batch_size=16, **words),
        config(manifest, models, tmp_path, batch_size=4, freeze_encoders=True),
    ]
    torch.multiprocessing.spawn(one_of_two, (all_settings, free_port(), tmp_path), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for number, least in enumerate((100, 40)):
        alone = numbers_and_gradients(all_settings[number], World())
        assert len(alone) > least and alone.pop("stop") == 0
        for together in both:
            assert together[number].keys() - {"stop"} == alone.keys()
            for name, expected in alone.items():
                error = (together[number][name] - expected).norm() / expected.norm()
                assert error < 1e-9, (number, name, float(error))


def torchrun(arguments: list[str]) -> "subprocess.Popen[str]":
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(free_port()), "-m", "trainer.run", *arguments,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def flags(settings: TrainConfig) -> list[str]:
    changed = settings.model_dump(exclude_defaults=True)
    return [x for name, v in changed.items() for x in (f"--{name.replace('_', '-')}", str(v))]


def stats(folder: Path) -> list[dict[str, float]]:
    path = folder / "stats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_torchrun_is_stopped_and_carried_on_by_one_process(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(manifest, models, tmp_path / "two", steps=1000)
    process = torchrun(flags(settings))
    deadline = time.monotonic() + 120
    while len(stats(settings.folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0 and "trainer/" not in said  # torchrun's traceback, none of ours
    assert said.count("4 patches a step, 2 on each of 2 processes") == 1, said
    assert said.count("stopped; the same command carries on") == 1, said
    done = int(torch.load(settings.folder / "checkpoint.pt", weights_only=True)["step"])
    assert [line["step"] for line in stats(settings.folder)] == list(range(1, done + 1))

    alone = config(manifest, models, tmp_path / "one", steps=done + 2)
    loop.train(alone)
    loop.train(alone.model_copy(update={"out": settings.folder}))
    expected, found = stats(alone.folder), stats(settings.folder)
    assert [line["step"] for line in found] == list(range(1, done + 3))
    for a, b in zip(expected, found, strict=True):
        for name in a.keys() - {"seconds_per_step", "waiting_for_data", "waiting_for_device"}:
            assert b[name] == pytest.approx(a[name], rel=2e-3, abs=2e-4), (a["step"], name)


def test_a_mistake_is_said_once(manifest: Path, models: Path, tmp_path: Path) -> None:
    process = torchrun(flags(config(manifest, models, tmp_path / "run", batch_size=5)))
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert re.findall("^error: .*", said, re.MULTILINE) == [
        "error: --batch-size 5: is the batch of all processes together, and 2 cannot share it"
        " evenly; take a multiple of 2"
    ]
