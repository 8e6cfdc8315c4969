"""When one process of a run fails: its error is printed once, and all processes end.

Collectives cannot carry the news: they need every process. The processes use the key-value store of
torchrun instead. The first that fails claims the right to speak, prints its error with its rank and
says that it is printed; the others end in silence, and only then, because torchrun kills all
processes as soon as one has ended.

A thread of each process watches the store, and the other processes of its machine. It ends a
process that is stuck in a collective (NCCL waits for a dead process until its timeout), and notices
one that was killed and so printed nothing, or that has fallen silent with its machine. A second
thread looks whether the store answers the first.
"""

import contextlib
import datetime
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from lasr.cli import STOPPED, print_error
from lasr.errors import UserError
from lasr.system.calls import is_alive, is_zombie
from trainer.distributed import silence
from trainer.distributed.world import KNOWN_TO_ALL, ReportedElsewhere, World

LOOK = 0.5  # seconds between two looks of the thread
GRACE = 5.0  # seconds in which a process ends by itself after another has failed
_TIMEOUT = datetime.timedelta(minutes=5)  # for all processes to start

log = logging.getLogger(__name__)


def serves_store(world: World) -> bool:
    """Whether this process serves the store: torchrun does, or else rank 0."""
    return world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def open_store(world: World) -> Store:
    """Connect to the store of this run, for collectives."""
    return _connect("group", serves_store(world))


def _connect(prefix: str, is_server: bool = False) -> Store:
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=is_server,
        timeout=_TIMEOUT,
        wait_for_workers=False,
    )
    # torchrun may start all processes again; the keys of the attempt before are still there.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"lasr/{prefix}/{attempt}", store)


class Failure:
    """Ends the processes of a run together; a context manager around all that they do."""

    def __init__(self, world: World):
        self.world = world
        self._store, self._thread_store = _connect("failure"), _connect("failure")
        self._left = threading.Event()
        self._before: Any = None  # what handled SIGTERM
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._ended = threading.Event()
        self._unanswered = 0.0  # seconds that the first thread has been waiting for the store

    def __enter__(self) -> "Failure":
        self._store.set(f"process/{self.world.rank}", f"{os.getpid()} {socket.gethostname()}")
        self._heartbeats = silence.Heartbeats(self.world, self._thread_store)
        self._thread.start()
        threading.Thread(target=self._guard, name="guard", daemon=True).start()
        # torchrun sends SIGTERM to the others when one has ended: they may have to say why.
        with contextlib.suppress(ValueError):  # not the main thread, which alone may do this
            self._before = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        self._left.set()
        self._thread.join(GRACE)
        self._ended.set()

    def report(self, error: BaseException) -> int:
        """Print an error unless another process printed one; returns the exit status."""
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        for number in (signal.SIGTERM, signal.SIGINT):  # it ends anyway
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_IGN)
        try:
            if not isinstance(error, ReportedElsewhere) and self._claim(self._store):
                self._print(error)
                self._store.set("printed", "")
            else:
                log.debug("rank %d ends as well", self.world.rank, exc_info=error)
                self._wait_for(["printed"])
        except RuntimeError:  # torchrun is gone, and its store with it
            if not isinstance(error, ReportedElsewhere):
                print_error(error)
        return status

    def leave(self, done: bool) -> None:
        """Say that this process ends of its own accord. done: it has done all its work."""
        if done:
            self._left.set()
            self._thread.join()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"left/{self.world.rank}", "")
            if done and serves_store(self.world):  # the threads of the others need it until then
                self._wait_for([f"left/{rank}" for rank in range(self.world.size)])

    def _print(self, error: BaseException) -> None:
        stopped = isinstance(error, KeyboardInterrupt)
        if _is_lost_connection(error) or (stopped and self._dead(self._store)):
            self._print_dead(self._store, patience=2)
        elif stopped:
            print(STOPPED, file=sys.stderr, flush=True)
        elif KNOWN_TO_ALL in getattr(error, "__notes__", ()):
            print_error(error)
        else:
            print_error(error, f"rank {self.world.rank}: ")

    def _print_dead(self, store: Store, patience: float) -> None:
        """Print which process was killed, if it was one of this machine."""
        until = time.monotonic() + patience
        while not (dead := self._dead(store)) and time.monotonic() < until:
            time.sleep(0.05)  # its connections close before it is gone
        named = ", ".join(f"rank {rank} (process {pid})" for rank, pid in dead.items())
        print_error(
            UserError(
                f"{named or 'another process of this run'} has ended without a message: it was"
                " killed, perhaps because memory ran out",
                "run the same command again, which resumes from the last checkpoint",
            )
        )

    def _dead(self, store: Store) -> dict[int, int]:
        """Ranks of this machine whose process is gone though it did not leave, with its id."""
        dead = {}
        for rank in range(self.world.size):
            if store.check([f"process/{rank}"]) and not store.check([f"left/{rank}"]):
                pid, _, host = store.get(f"process/{rank}").decode().partition(" ")
                if host == socket.gethostname() and not _is_alive(int(pid)):
                    dead[rank] = int(pid)
        return dead

    def _claim(self, store: Store) -> bool:
        """Whether this process is the first to fail, and so prints the error."""
        return bool(store.add("claimed", 1) == 1)

    def _wait_for(self, keys: list[str], store: Store | None = None) -> None:
        """Wait until all keys are set, at most GRACE seconds."""
        until = time.monotonic() + GRACE
        while not (store or self._store).check(keys) and time.monotonic() < until:
            time.sleep(0.02)

    def _watch(self) -> None:
        """End this process if another failed and this one does not notice."""
        store = self._thread_store
        due = time.monotonic()
        try:
            while not self._left.wait(LOOK):
                self._unanswered = 0.0
                if store.check(["claimed"]):
                    break
                if self._dead(store) and not self._left.wait(GRACE):
                    if self._claim(store):
                        self._print_dead(store, patience=0)
                        store.set("printed", "")
                    break
                if time.monotonic() < due:
                    continue
                due = time.monotonic() + silence.BEAT
                if silent := self._heartbeats.round():
                    if self._claim(store):
                        print_error(silence.lost(silent))
                        store.set("printed", "")
                    break
            self._wait_for(["printed"], store)
        except RuntimeError:  # torchrun is gone; what happens then is up to the operating system
            self._unanswered = -math.inf
            return
        if not self._left.wait(GRACE):
            os._exit(1)

    def _guard(self) -> None:
        """End this process if the store does not answer: its machine has fallen silent."""
        while not self._ended.wait(LOOK):
            self._unanswered += LOOK
            if self._unanswered > silence.SILENCE:
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    print_error(silence.unreachable(os.environ["MASTER_ADDR"]))
                else:  # torchrun kills the others of its machine as soon as one has ended
                    time.sleep(LOOK + 1)
                os._exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, UserError):
        return False
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or (
        isinstance(error, RuntimeError) and "onnection" in str(error)
    )


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended stays until torchrun looks."""
    return is_alive(pid) and not is_zombie(pid)
