"""torchrun on two machines, two processes each: what becomes of a run when one has an accident.

Each machine has its own copy of the manifest; the run's folder is on a drive that both see.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cluster import storage
from tests.cluster.hosts import ROOT, Host, Process, machines
from tests.support.training import flags
from trainer import loop
from trainer.config import TrainConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

PORT = 29500
STEPS = 8
Losses = list[dict[str, float]]


def losses(folder: Path) -> Losses:
    path = folder / "stats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def settings(models: Path, out: Path, **changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "manifest": Path("patches.parquet"), "out": out, "profile": "test", "batch_size": 4,
        "clip": str(models / "clip"), "sr_init": str(models / "sr.safetensors"), "log_every": 1,
        "sample_every": 1000, "checkpoint_every": 2, "workers": 1, "device": "cpu",
    }  # fmt: skip
    return TrainConfig(**(plain | changes))


@pytest.fixture(scope="module")
def alone(manifest: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """The losses of one process on one machine."""
    out = tmp_path_factory.mktemp("alone") / "run"
    loop.train(settings(models, out, manifest=manifest, steps=STEPS))
    return losses(out)


@dataclass
class Run:
    """One training run on both machines."""

    hosts: list[Host]
    models: Path
    out: Path
    variables: dict[str, str] = field(default_factory=dict)

    def start(self, steps: int, *more: str, manifest: str = "patches.parquet") -> list[Process]:
        """Type the command on both machines."""
        arguments = [*flags(settings(self.models, self.out, steps=steps)), *more]
        arguments[arguments.index("--manifest") + 1] = manifest
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        launcher += ["--nproc-per-node", "2", "--master-addr", self.hosts[0].address]
        launcher += ["--master-port", str(PORT)]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        variables |= self.variables
        return [
            host.start(
                [*launcher, "--node-rank", str(rank), "-m", "trainer.run", *arguments],
                environment=variables,
            )
            for rank, host in enumerate(self.hosts)
        ]

    def losses(self) -> Losses:
        return losses(self.hosts[0].outside(self.out))

    def until(self, step: int, programs: list[Process]) -> None:
        """Wait until that step is logged."""
        while len(self.losses()) < step:
            for program in programs:
                assert program.started.poll() is None, program.text
            time.sleep(0.05)

    def resume(self, alone: Losses) -> None:
        """The same command trains the rest, and the losses are those of one machine."""
        done = self.checkpoint()
        assert done >= 2
        steps = done + 2
        self.finish(steps)
        found = self.losses()
        assert [line["step"] for line in found] == list(range(1, steps + 1))
        same(found, alone)

    def checkpoint(self) -> int:
        """The step of the last checkpoint."""
        state = torch.load(self.hosts[0].outside(self.out / "checkpoint.pt"), weights_only=True)
        return int(state["step"])

    def finish(self, steps: int, *more: str) -> None:
        for program in self.start(steps, *more):
            assert program.wait(900) == 0, program.text


@contextmanager
def two(folder: Path, manifest: Path, models: Path, **disks: Any) -> Iterator[Run]:
    with machines(folder, "first", "second", **disks) as hosts:
        yield prepared(folder, hosts, manifest, models)


def prepared(folder: Path, hosts: list[Host], manifest: Path, models: Path) -> Run:
    """A run with networks on the drive that both see, and a manifest on each host's own disk."""
    copied = folder / "shared" / "models"
    shutil.copytree(models, hosts[0].outside(copied))
    for host in hosts:
        shutil.copytree(manifest, host.outside(host.home / "patches.parquet"))
    return Run(hosts, copied, folder / "shared" / "run")


@pytest.fixture
def run(tmp_path: Path, manifest: Path, models: Path) -> Iterator[Run]:
    with two(tmp_path, manifest, models) as run:
        yield run


def same(found: Losses, expected: Losses) -> None:
    """Equal as far as both go."""
    assert min(len(found), len(expected)) > 2
    for a, b in zip(expected, found, strict=False):
        assert a["step"] == b["step"]
        for name in a.keys() - {"seconds_per_step", "waiting_for_data", "waiting_for_device"}:
            assert b[name] == pytest.approx(a[name], rel=2e-3, abs=2e-4), (a["step"], name)


def errors(program: Process) -> list[str]:
    """The lines that are ours."""
    assert "trainer/" not in program.text, program.text  # torchrun's traceback, none of ours
    return [line for line in program.text.splitlines() if line.startswith(("error: ", "stopped"))]


def test_two_machines_train_as_one(run: Run, alone: Losses) -> None:
    run.finish(4)
    assert len(run.losses()) == 4
    same(run.losses(), alone)


@pytest.mark.parametrize("dies", [0, 1])
def test_a_machine_dies(run: Run, alone: Losses, dies: int) -> None:
    """The other says so, once; after the repair the same command goes on."""
    programs = run.start(1000)
    run.until(3, programs)
    run.hosts[dies].power_off()
    began = time.monotonic()
    status = programs[1 - dies].wait(600)
    print(f"noticed after {time.monotonic() - began:.0f} s")
    said = errors(programs[1 - dies])
    assert status != 0 and len(said) == 1, said
    silent = "ranks 2, 3 on second" if dies else r"10\.77\.0\.1 \(MASTER_ADDR\)"
    assert re.match(rf"error: .*{silent}.*120 s.*is down; check it, then run the same", said[0])

    run.hosts[dies].power_on()
    run.resume(alone)


def test_a_machine_is_cut_off_for_a_minute(run: Run, alone: Losses) -> None:
    """Nobody gives up."""
    programs = run.start(STEPS)
    run.until(3, programs)
    run.hosts[1].cut()
    time.sleep(60)
    assert len(run.losses()) < STEPS
    run.hosts[1].heal()
    began = time.monotonic()
    for program in programs:
        assert program.wait(900) == 0, program.text
    print(f"ended {time.monotonic() - began:.0f} s after it was healed")
    same(run.losses(), alone)


def test_a_machine_is_cut_off_for_good(run: Run, alone: Losses) -> None:
    """Both sides end with a line, though all their processes live."""
    programs = run.start(1000)
    run.until(3, programs)
    run.hosts[1].cut()
    began = time.monotonic()
    for program in programs:
        assert program.wait(600) != 0
        assert len(errors(program)) == 1, program.text
    print(f"both ended after {time.monotonic() - began:.0f} s")
    run.hosts[1].heal()
    run.resume(alone)


def test_a_slow_network_changes_nothing(run: Run, manifest: Path, models: Path) -> None:
    """The gradients of the encoders alone would take minutes a step."""
    plain = settings(models, run.out.parent / "alone", manifest=manifest, steps=3)
    plain = plain.model_copy(update={"freeze_encoders": True})
    loop.train(plain)
    run.hosts[1].slow()
    began = time.monotonic()
    run.finish(3, "--freeze-encoders")
    print(f"3 steps at 1 Mbit/s: {time.monotonic() - began:.0f} s")
    assert len(run.losses()) == 3
    same(run.losses(), losses(plain.folder))


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_wrong_clock_changes_nothing(run: Run, alone: Losses, hours: float) -> None:
    run.hosts[1].set_clock(hours)
    assert clock(run.hosts[1]) == pytest.approx(time.time() + 3600 * hours, abs=600)
    run.finish(STEPS)
    assert len(run.losses()) == STEPS
    same(run.losses(), alone)


def clock(host: Host) -> float:
    """The time of day that a program on a host sees."""
    return float(host.run([sys.executable, "-S", "-c", "import time; print(time.time())"]))


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    tmp_path: Path, manifest: Path, models: Path, alone: Losses
) -> None:
    with two(tmp_path, manifest, models, shared=128) as run:
        programs = run.start(1000)
        run.until(3, programs)
        filler = run.hosts[0].fill(tmp_path / "shared")
        for program in programs:
            assert program.wait(600) != 0
        said = [line for program in programs for line in errors(program)]
        assert len(said) == 1 and re.search(r"cannot be written \(.* free", said[0]), said
        run.hosts[0].run(["rm", str(filler)])
        run.resume(alone)


@pytest.mark.parametrize("hours", [0, 30])
def test_a_manifest_in_object_storage(
    tmp_path: Path, manifest: Path, models: Path, alone: Losses, hours: float
) -> None:
    """Also where the clock of one machine is wrong, by which it signs its requests."""
    if reason := storage.lacking():
        pytest.skip(reason)
    with machines(tmp_path, "first", "second", "storage") as (*hosts, server):
        run = prepared(tmp_path, hosts, manifest, models)
        with storage.bucket(server, "data") as run.variables:
            storage.upload(server, hosts[0].home / "patches.parquet", "data/patches.parquet")
            hosts[1].set_clock(hours)
            programs = run.start(4, manifest="s3://data/patches.parquet")
            statuses = [program.wait(900) for program in programs]
        text = "".join(program.text for program in programs)
        assert not any(statuses), text
        assert len(run.losses()) == 4
        same(run.losses(), alone)
