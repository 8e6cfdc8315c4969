"""The commands of an episode: processes of their own, with a log each."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lasr.cli import Command
from pipeline.config import BuildConfig
from tests.support import processes
from tests.support.servers import environment

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # linux/capability.h: permissions do not hold root
CAPABILITIES_VERSION = 0x20080522
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 24, 36  # linux/prctl.h
READY, OVER = "chaos: ready\n", "chaos: over\n"  # around what a command prints


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inherited"))


def obey_permissions() -> None:
    """Take root's right to pass over permissions from this process and its children."""
    libc, header, sets = ctypes.CDLL(None), _Header(CAPABILITIES_VERSION, 0), (_Sets * 2)()
    libc.capget(ctypes.byref(header), sets)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        for name in ("effective", "permitted", "inherited"):
            setattr(sets[0], name, getattr(sets[0], name) & ~(1 << capability))
    libc.capset(ctypes.byref(header), sets)


def adopt_orphans(yes: bool) -> None:
    """Make this process the parent of what its children leave behind, so that it is seen."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


def build_here(config: BuildConfig) -> None:
    """`lasr build` but for Prefect, whose server takes seconds to start."""
    import lasr

    lasr.build_patches(**dict(config))


def main_of(name: str) -> "Command[object]":
    """The command that a name stands for."""
    from pipeline.query.__main__ import main as query
    from pipeline.report.__main__ import main as report
    from trainer.run import main as train

    build = Command(BuildConfig, build_here, name="lasr build", about="", weights=True)
    found: dict[str, Command[object]] = {
        "build": build, "query": query, "report": report, "train": train
    }  # type: ignore[dict-item]  # fmt: skip
    return found[name]


def child(name: str, argv: list[str], folder: Path, log: Path) -> None:
    """What a process of its own does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    obey_permissions()
    status = 1
    if name == "flow":  # with Prefect and its server, in a Python of its own
        os.write(1, READY.encode())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        command = [sys.executable, "-m", "lasr", "build", *argv]
        os.execve(sys.executable, command, environment(folder))
    main = main_of(name)
    try:
        os.write(1, READY.encode())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main(argv)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os.write(1, OVER.encode())
    os._exit(status)


@dataclass
class Program:
    """A command that was started, and the signals it was sent."""

    name: str
    argv: list[str]
    log: Path
    process: ForkServerProcess
    signals: list[signal.Signals] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it has printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text.removeprefix(READY).removesuffix(OVER)

    @property
    def is_ready(self) -> bool:
        """Whether it has begun, and a signal is its own affair."""
        return self.log.exists() and self.log.stat().st_size >= len(READY)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False if it has ended."""
        if not self.process.is_alive() or self.process.pid is None:
            return False
        os.kill(self.process.pid, number)
        self.signals.append(number)
        return True

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        self.process.join(seconds)
        return not self.process.is_alive()

    @property
    def outcome(self) -> str:
        """How it ended: done, refused, stopped, killed, or crashed."""
        status = self.process.exitcode
        if status == 0:
            return "done"
        if status == 130 and signal.SIGINT in self.signals:
            return "stopped"
        if status is not None and status < 0 and -status in self.signals:
            return "killed"
        if status in (128 + signal.SIGTERM, 130) and signal.SIGTERM in self.signals:
            return "stopped"
        return "refused" if status in (1, 2) else f"crashed with {status}"


def start(name: str, argv: list[str], folder: Path, log: Path) -> Program:
    """Start a command in `folder`."""
    process = processes.context().Process(target=child, args=(name, argv, folder, log))
    process.start()
    return Program(name, argv, log, process)


def descendants(pid: int) -> Iterator[int]:
    """All processes below one that have not ended."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            below.setdefault(int(parent), []).append(int(stat.parent.name))
    waiting = [pid]
    while waiting:
        found = below.get(waiting.pop(), [])
        yield from found
        waiting += found


def prefect_servers(program: Program) -> list[int]:
    """Process ids of the embedded server of a build through Prefect, if it runs by now."""
    below = descendants(program.process.pid or os.getpid())
    return [pid for pid in below if "pipeline/flows/embedded.py" in _command_line(pid)]


def left_behind(before: set[int], seconds: float = 120) -> list[str]:
    """Command lines of processes below this one that were not there `before` and do not end."""
    end = time.monotonic() + seconds
    while (left := _new(before)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def _new(before: set[int]) -> list[str]:
    lines = [_command_line(pid) for pid in set(descendants(os.getpid())) - before]
    # A database server of another test starts a process for each connection.
    return [line for line in lines if " postgres: " not in line]


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return str(pid)
    return f"{pid} {words.decode(errors='replace')[:200]}"
