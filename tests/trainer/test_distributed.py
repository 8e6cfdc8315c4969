"""Several processes: the loss and gradients of one, and a run under the real torchrun."""

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainer.run
from lasr.errors import UserError
from schemas.manifest import ManifestError, open_manifest
from tests.support import processes
from tests.support.bad_rows import one_table, with_pictures
from tests.support.training import flags
from tests.support.weights import load_encoders, load_rrdb
from trainer import distributed, loop
from trainer.config import TrainConfig
from trainer.data.dataset import COLUMNS, Patches
from trainer.distributed import World, group
from trainer.models.vgg import untrained_vgg
from trainer.step import TrainStep

ROOT = Path(__file__).parents[2]


def config(manifest: Path, models: Path, out: Path, **changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "manifest": manifest, "out": out, "profile": "test", "clip": str(models / "clip"),
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
    """One step in float64, where a wrong factor cannot hide behind rounding, or in bfloat16."""
    wide = torch.float32 if settings.precision == "bfloat16" else torch.float64
    encoders = load_encoders(settings.clip_name, torch.device("cpu")).to(wide)
    step = TrainStep(
        settings, load_rrdb(settings.sr_name).to(wide), encoders, untrained_vgg().to(wide), world
    )
    batch = Patches(open_manifest(settings.manifest, COLUMNS)).batch(
        0, settings.batch_size, world.rank, world.size
    )
    lr, hr = batch.lr.to(wide), batch.hr.to(wide)
    object.__setattr__(batch, "lr", lr), object.__setattr__(batch, "hr", hr)
    numbers = step(batch, step.texts_of(batch))
    found = dict(zip(step.names, numbers, strict=True))
    for kind, network in (("sr", step.sr_network), ("encoders", encoders)):
        assert isinstance(network, nn.Module)
        found |= {
            f"{kind}.{k}": p.grad for k, p in network.named_parameters() if p.grad is not None
        }
    return found


def on_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in two processes and wait for both."""
    both = [processes.context().Process(target=function, args=(r, *arguments)) for r in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]


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
    """2x3 equals 1x6, in every term, norm and gradient, in both processes."""
    words = {"bad": ["bad", "blurry"], "good": ["good", "sharp", "clean"]}
    all_settings = [
        config(manifest, models, tmp_path, batch_size=6, **words),
        config(manifest, models, tmp_path, batch_size=4, freeze_encoders=True),
        config(manifest, models, tmp_path, batch_size=4, precision="bfloat16"),
    ]
    on_two_ranks(one_of_two, all_settings, free_port(), tmp_path)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for number, least in enumerate((100, 40)):
        alone = numbers_and_gradients(all_settings[number], World())
        assert len(alone) > least and alone.pop("stop") == 0
        for together in both:
            assert together[number].keys() - {"stop"} == alone.keys()
            for name, expected in alone.items():
                error = (together[number][name] - expected).norm() / expected.norm()
                assert error < 1e-9, (number, name, float(error))
    alone = numbers_and_gradients(all_settings[2], World())
    for kind in ("sr.", "encoders."):
        expected, *found = (
            torch.cat([x.flatten() for name, x in one.items() if name.startswith(kind)])
            for one in (alone, *(together[2] for together in both))
        )
        assert torch.equal(*found)
        assert 0 < (found[0] - expected).norm() / expected.norm() < 5e-2


def torchrun(
    arguments: list[str], program: Sequence[str] = ("-m", "trainer.run")
) -> "subprocess.Popen[str]":
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(free_port()), *program, *arguments,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stats(folder: Path) -> list[dict[str, float]]:
    path = folder / "stats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_torchrun_is_stopped_and_resumed_by_one_process(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    settings = config(manifest, models, tmp_path / "two", steps=1000)
    process = torchrun(flags(settings))
    while len(stats(settings.folder)) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode != 0 and "trainer/" not in said  # torchrun's traceback, none of ours
    assert said.count("4 patches a step, 2 on each of 2 processes") == 1, said
    assert said.count("stopped; run the same command again to resume") == 1, said
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


def one_rank(rank: int, arguments: list[str], port: int, folder: Path) -> None:
    """`trainer.run` as torchrun starts it, but for importing everything again."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.exit(importlib.reload(trainer.run).main(arguments))  # it reads RANK when it is imported


def two_ranks(settings: TrainConfig, folder: Path, status: int) -> tuple[str, str]:
    """What both ranks of a run print, on stdout and on stderr; both end with `status`."""
    start = processes.context().Process
    arguments = (flags(settings), free_port(), folder)
    both = [start(target=one_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == status
    out, error = (
        "".join((folder / f"{rank}.{name}").read_text() for rank in range(2))
        for name in ("out", "err")
    )
    return out, error


def test_a_mistake_is_said_once(manifest: Path, models: Path, tmp_path: Path) -> None:
    _, said = two_ranks(config(manifest, models, tmp_path / "run", batch_size=5), tmp_path, 1)
    assert re.findall("^error: .*", said, re.MULTILINE) == [
        "error: --batch-size 5: this is the batch of all processes together, and 2 processes cannot"
        " share it evenly; pass a multiple of 2"
    ]


def test_two_processes_skip_the_rows_that_one_skips(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    rows = one_table(manifest)["role"].to_pylist()
    bad = dict.fromkeys(range(0, len(rows), 4), b"no PNG")
    damaged = with_pictures(manifest, tmp_path / "damaged.parquet", bad)
    changes: dict[str, Any] = {"steps": 3, "max_skipped": 0.5}
    alone, two = (config(damaged, models, tmp_path / x, **changes) for x in ("one", "two"))
    loop.train(alone)
    out, said = two_ranks(two, tmp_path, 0)
    skipped = (alone.folder / "skipped.jsonl").read_text()
    assert (two.folder / "skipped.jsonl").read_text() == skipped
    count = len(skipped.splitlines())
    assert count > 2 and f"skipped: {count} rows of the manifest" in out
    assert said.count("WARNING: step ") == 1, said
    for a, b in zip(stats(alone.folder), stats(two.folder), strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=2e-3)


SABOTAGE = """
import os, runpy, sys
import trainer.step
real, calls = trainer.step.TrainStep.__call__, []
def step(*arguments):
    calls.append(1)
    if len(calls) == 2 and os.environ["RANK"] == "1":
        raise RuntimeError("a bug in a kernel")
    return real(*arguments)
trainer.step.TrainStep.__call__ = step
sys.argv[0] = "trainer.run"
runpy.run_module("trainer.run", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_under_torchrun_an_error_of_rank_1_is_printed_once(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SABOTAGE)
    settings = config(manifest, models, tmp_path / "run")
    process = torchrun(flags(settings), [str(tmp_path / "script.py")])
    said = process.communicate()[1]
    assert process.returncode != 0
    errors = re.findall("^error: .*", said, re.MULTILINE)
    assert len(errors) == 1, said
    assert errors[0].startswith("error: rank 1: unexpected RuntimeError: a bug in a kernel; run")
    assert "trainer/" not in said, said


def outcomes(rank: int, port: int, folder: Path) -> None:
    """What `on_all_ranks` and `on_rank_zero` do on one of two ranks."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"

    def fails_on(*ranks: int) -> str:
        if rank in ranks:
            raise ManifestError(f"broken on {rank}", "repair it")
        return f"fine on {rank}"

    def outcome(run: Callable[[Callable[[], str]], object], ranks: tuple[int, ...]) -> str:
        try:
            return str(run(lambda: fails_on(*ranks)))
        except UserError as error:
            return f"{type(error).__name__}: {error}"

    with distributed.process_group("cpu") as (world, _):
        found = [outcome(world.on_all_ranks, ranks) for ranks in FAILING]
        found += [outcome(world.on_rank_zero, ranks) for ranks in FAILING]
        found += [str(world.exchange(rank + 5))]
    (folder / f"{rank}.json").write_text(json.dumps(found))


FAILING = ((), (0,), (1,), (0, 1))


def test_an_error_on_any_rank_ends_all_and_rank_0_says_it(tmp_path: Path) -> None:
    on_two_ranks(outcomes, free_port(), tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == [
        "fine on 0", "ManifestError: broken on 0; repair it",
        "UserError: rank 1: broken on 1; repair it", "ManifestError: broken on 0; repair it",
        "None", "ManifestError: broken on 0; repair it", "None",
        "ManifestError: broken on 0; repair it", "[5, 6]",
    ]  # fmt: skip
    assert second == [
        "fine on 1", "ReportedElsewhere: broken on 0; repair it",
        "ReportedElsewhere: broken on 1; repair it", "ReportedElsewhere: broken on 0; repair it",
        "None", "ReportedElsewhere: broken on 0; repair it", "None",
        "ReportedElsewhere: broken on 0; repair it", "[5, 6]",
    ]  # fmt: skip


def test_a_rank_without_a_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="process 2 of this machine has no GPU, there are 1"):
        group._device_of_rank("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch sees no GPU"):
        group._device_of_rank("cuda")
