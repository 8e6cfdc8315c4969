"""One process of several fails: its error is printed once, and all end.

They meet as under torchrun.
"""

import errno
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lasr.errors import UserError
from tests.support import processes
from trainer.data.prefetch import prefetch
from trainer.distributed import World, failure, process_group


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def work(world: World, sabotage: Callable[[], object], saboteur: int) -> None:
    """Steps with a collective in each, as training has; in the third, one rank has its accident."""
    for step in range(200):
        if step == 2 and world.rank == saboteur:
            sabotage()
        if step == 2 and sabotage is hangs_on_others and world.rank == 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as in a library's C code
            time.sleep(600)
        if step == 2 and sabotage is killed_while_others_load and world.rank != saboteur:
            time.sleep(600)
        dist.all_reduce(torch.ones(1))
        time.sleep(0.01)


def one_rank(
    rank: int, size: int, port: int, out: Path, sabotage: Callable[[], object], saboteur: int
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    os.dup2(os.open(out / str(rank), os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w")
    torch.set_num_threads(1)
    failure.LOOK, failure.GRACE = 0.1, 1.0
    with process_group("cpu") as (world, _):
        work(world, sabotage, saboteur)


def run(
    out: Path, sabotage: Callable[[], object], saboteur: int = 1, size: int = 2
) -> tuple[list[str], list[int | None]]:
    """The lines that all ranks printed, and their exit statuses."""
    start = processes.context().Process
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's
    ranks = [
        start(target=one_rank, args=(rank, size, store.port, out, sabotage, saboteur))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    connection.wait([process.sentinel for process in ranks], 60)
    for process in ranks:  # as torchrun does
        process.terminate()
    for process in ranks:
        process.join()
    statuses = [process.exitcode for process in ranks]
    said = [line for rank in range(size) for line in (out / str(rank)).read_text().splitlines()]
    return [line for line in said if "[W" not in line], statuses  # PyTorch's warnings in C++


def user_error() -> None:
    raise UserError("m.parquet: is gone", "build it again")


def bug() -> None:
    raise RuntimeError("a bug in a kernel")


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/copy")


def loader_fails() -> None:
    def batches():  # type: ignore[no-untyped-def]
        raise MemoryError("of a thread")
        yield

    next(prefetch(batches(), lambda batch: batch.lr, torch.device("cpu")))


def stopped() -> None:
    raise KeyboardInterrupt


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_others_load() -> None:
    killed()


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        (user_error, r"error: rank 1: m\.parquet: is gone; build it again"),
        (bug, r"error: rank 1: unexpected RuntimeError: a bug in a kernel; run again with.*"),
        (no_memory, r"error: rank 1: out of memory \(CUDA out of memory\).*"),
        (
            full_disk,
            r"error: rank 1: /tmp/copy: cannot be written \(No space left on device; .*",
        ),
        (loader_fails, r"error: rank 1: out of memory \(of a thread\).*"),
        (stopped, "stopped; run the same command again to resume"),
        (killed, r"error: rank 1 \(process \d+\) has ended without a message: it was killed.*"),
        (killed_while_others_load, r"error: rank 1 \(process \d+\) has ended without a message.*"),
    ],
)
def test_the_error_of_a_rank_is_printed_once_and_all_end(
    tmp_path: Path, sabotage: Callable[[], object], said: str
) -> None:
    lines, statuses = run(tmp_path, sabotage)
    assert len(lines) == 1, lines
    assert re.fullmatch(said, lines[0]), lines
    assert all(statuses), statuses


def test_a_rank_that_is_stuck_is_ended(tmp_path: Path) -> None:
    """As in a collective of NCCL, which does not notice that another process is gone."""
    lines, statuses = run(tmp_path, hangs_on_others, saboteur=2, size=3)
    assert statuses == [1, 1, 1] and len(lines) == 1 and lines[0].startswith("error: rank 2: m.")


def hangs_on_others() -> None:
    time.sleep(0.5)
    user_error()


def test_a_store_that_is_gone_leaves_the_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    world = World(0, 2)
    store = failure.open_store(world)
    alone = failure.Failure(world)
    monkeypatch.setattr(failure.signal, "signal", lambda *_: None)  # of this process
    monkeypatch.setattr(alone, "_claim", lambda _: (_ for _ in ()).throw(RuntimeError("gone")))
    assert alone.report(UserError("no room", "make some")) == 1
    assert capsys.readouterr().err == "error: no room; make some\n"
    del store
