"""What of the tests on several machines is part of every run: the hosts, and a cheap training run.

The processes of the run are forked, and move into the network of a host.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import trainer.run
from tests.cluster.hosts import Host, join, machines
from tests.support import processes
from tests.support.training import flags
from trainer import loop
from trainer.config import TrainConfig
from trainer.distributed import failure, process_group, silence

pytestmark = pytest.mark.slow

ASK = "import socket; socket.create_connection(('{}', 8000), 2).close()"
SEND = "import socket; s = socket.create_connection(('{}', 8000)); s.sendall(bytes({})); s.close()"
TAKE = """
import socket, time
with socket.create_server(("", 8000)) as server:
    print("ready", flush=True)
    while True:
        connection, began, size = server.accept()[0], time.monotonic(), 0
        while found := connection.recv(1 << 16):
            size += len(found)
        print(size, time.monotonic() - began, flush=True)
"""


def python(host: Host, code: str) -> str:
    return host.run([sys.executable, "-S", "-c", code])


def test_hosts_are_machines_of_their_own(tmp_path: Path) -> None:
    with machines(tmp_path, "first", "second", disks={"second": 8}) as (first, second):
        held = [first.spaces.starter, second.spaces.starter]
        assert first.run(["hostname"]) + second.run(["hostname"]) == "first\nsecond\n"
        first.run(["sh", "-c", "touch /tmp/mine ~/mine"])
        assert "mine" not in second.run(["ls", "/tmp", "."])
        assert (tmp_path / "first" / "mine").exists() and not Path("/tmp/mine").exists()

        server = second.start([sys.executable, "-S", "-c", TAKE])
        while "ready" not in server.text:
            assert server.started.poll() is None, server.text
            time.sleep(0.02)
        python(first, ASK.format("second"))
        second.cut()
        with pytest.raises(subprocess.CalledProcessError, match="returned non-zero"):
            python(first, ASK.format("second"))
        second.heal()
        python(first, ASK.format("second"))

        second.slow()
        python(first, SEND.format("second", 250_000))
        while not (told := re.search(r"^250000 (.*)$", server.text, re.MULTILINE)):
            time.sleep(0.02)
        assert float(told[1]) > 1  # at 1 Mbit/s two seconds, else milliseconds

        filler = second.fill(left=1000)
        with pytest.raises(subprocess.CalledProcessError, match="returned non-zero"):
            second.run(["dd", "if=/dev/zero", "of=more", "bs=100k", "count=1"])
        second.run(["rm", str(filler)])

        second.power_off()
        assert server.wait(60) == -signal.SIGKILL
        second.power_on()
        assert second.run(["cat", "/etc/hostname"]) and second.run(["ls"]) == ""  # tmpfs is new
        held.append(second.spaces.starter)
    assert all(starter.poll() is not None for starter in held)


def on(host: Host, target: Callable[..., None], *arguments: Any) -> Any:
    """A process of a rank on a host."""
    process = processes.context().Process(target=joined, args=(host.spaces.pid, target, *arguments))
    process.start()
    return process


def joined(pid: int, target: Callable[..., None], *arguments: Any) -> None:
    join(pid)
    target(*arguments)


def meet(rank: int, address: str, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0"}
    for number in (1, 2):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stderr = os.fdopen(2, "w")


def trains(rank: int, address: str, out: Path, arguments: list[str]) -> None:
    meet(rank, address, out)
    trainer.run.RANK = rank
    sys.exit(trainer.run.main(arguments))


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def test_two_machines_train_as_one(manifest: Path, models: Path, tmp_path: Path) -> None:
    """Each reads its own copy of the manifest."""
    plain: dict[str, Any] = {
        "profile": "test", "clip": str(models / "clip"), "sr_init": str(models / "sr.safetensors"),
        "batch_size": 4, "log_every": 1, "steps": 3, "workers": 1, "device": "cpu",
    }  # fmt: skip
    with machines(tmp_path, "first", "second") as hosts:
        ranks = []
        for rank, host in enumerate(hosts):
            shutil.copytree(manifest, host.home / "patches.parquet")
            settings = TrainConfig(
                manifest=host.home / "patches.parquet", out=tmp_path / "run", **plain
            )
            out = tmp_path / f"{host.name}.log"
            ranks.append(on(host, trains, rank, hosts[0].address, out, flags(settings)))
        for rank, host in zip(ranks, hosts, strict=True):
            rank.join()
            assert rank.exitcode == 0, (tmp_path / f"{host.name}.log").read_text()
    loop.train(TrainConfig(manifest=manifest, out=tmp_path / "alone", **plain))
    expected, found = losses(tmp_path / "alone"), losses(tmp_path / "run")
    assert len(found) == len(expected) == 3
    for a, b in zip(expected, found, strict=True):
        for name in a.keys() - {"seconds_per_step", "waiting_for_data", "waiting_for_device"}:
            assert b[name] == pytest.approx(a[name], rel=2e-3, abs=2e-4), (a["step"], name)


def works(rank: int, address: str, out: Path) -> None:
    """Collectives without end, as training has them."""
    meet(rank, address, out)
    torch.set_num_threads(1)
    failure.LOOK, failure.GRACE, silence.BEAT, silence.SILENCE = 0.1, 1.0, 0.2, 8.0
    with process_group("cpu"):
        for step in range(10**6):
            dist.all_reduce(torch.ones(1))
            if step == 3:
                out.with_suffix(".works").touch()
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("dies", "said"),
    [
        (1, r"nothing was heard from rank 1 on second for 8 s: the machine or its network is down"),
        (0, r"10\.77\.0\.1 \(MASTER_ADDR\) has not answered for 8 s: that machine, or the network"),
    ],
)
def test_a_machine_that_dies_is_noticed(dies: int, said: str, tmp_path: Path) -> None:
    """Though none of its connections is closed."""
    with machines(tmp_path, "first", "second") as hosts:
        logs = [tmp_path / f"{host.name}.log" for host in hosts]
        ranks = [
            on(host, works, rank, hosts[0].address, logs[rank]) for rank, host in enumerate(hosts)
        ]
        while not all(log.with_suffix(".works").exists() for log in logs):
            assert all(rank.is_alive() for rank in ranks), [log.read_text() for log in logs]
            time.sleep(0.02)
        hosts[dies].power_off()
        ranks[dies].kill()  # it is in the host's network, but not below its first process
        lives = ranks[1 - dies]
        lives.join(120)
        assert lives.exitcode == 1
        lines = [x for x in logs[1 - dies].read_text().splitlines() if "[W" not in x]
        assert len(lines) == 1 and re.match(f"error: {said}.*run the same command", lines[0]), lines
