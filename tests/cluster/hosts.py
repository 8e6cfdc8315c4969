"""Several machines on one: hosts out of namespaces of Linux, joined by a switch.

    with machines(tmp_path, "head", "worker") as (head, worker):
        head.run(["ping", "-c1", worker.address])
        worker.power_off()

A host has processes, a hostname, an address (10.77.0.N), a loopback device, /tmp, /dev/shm and a
home of its own; all see the same files elsewhere, as machines with a network drive do. Namespaces
have no names: they end with the first process of their host, which ends when the test's process
does, however that ends. So nothing stays behind and nothing has to be swept.

Needs root, iproute2 and util-linux; `lacking` says what is missing. A time namespace shifts no time
of day, and libfaketime 0.9.10 breaks Python's time.sleep, so a wrong clock is a library of our own.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
SLOW = "tbf rate 1mbit burst 16kb latency 400ms"  # netem is not in every kernel

# The first process of a host: $1 its name, $2 the files that all share, $3 its home, $4 MB of a
# small disk there or 0, and then the folders that stay visible where they are below /tmp.
_BOOT = """
name=$1 shared=$2 home=$3 size=$4; shift 4
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /mnt
number=0
for folder in "$@"; do
    number=$((number + 1)); mkdir "/mnt/$number"; mount --rbind "$folder" "/mnt/$number"
done
mount -t tmpfs tmpfs /tmp; chmod 1777 /tmp
mount -t tmpfs tmpfs /dev/shm; chmod 1777 /dev/shm
number=0
for folder in "$@"; do
    number=$((number + 1)); mkdir -p "$folder"; mount --rbind "/mnt/$number" "$folder"
done
[ "$size" = 0 ] || mount -t tmpfs -o "size=${size}m" tmpfs "$home"
mount --bind "$shared/hosts" /etc/hosts
hostname "$name"
ip link set lo up
"""
_SWITCH = """
[ "$1" = 0 ] || mount -t tmpfs -o "size=${1}m" tmpfs "$2"
ip link add switch type bridge forward_delay 0
ip link set switch up
"""
# It takes in orphans, and ends, with everything in its namespaces, when the test's process ends.
_STAY = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""


@cache
def lacking() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "hosts out of namespaces need Linux and root"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"no {program} here: apt-get install {package}"
    try:
        with tempfile.TemporaryDirectory() as folder, machines(Path(folder), "a") as (a,):
            a.slow()
            a.run([sys.executable, "-S", "-c", "pass"])
    except (subprocess.CalledProcessError, ChildProcessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"this machine lets root make no network namespaces, or no tbf: {said}"
    return None


@dataclass
class Namespaces:
    """Those of the switch or of a host, held by their first process."""

    starter: "subprocess.Popen[str]"

    @property
    def pid(self) -> int:
        """The number that their first process has outside."""
        children = Path(f"/proc/{self.starter.pid}/task/{self.starter.pid}/children")
        return int(children.read_text().split()[0])

    def enter(self, *kinds: str) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *(f"--{kind}" for kind in kinds), "--"]

    def end(self) -> None:
        """Kill everything in them at once."""
        if self.starter.poll() is None:
            os.kill(self.pid, 9)
        self.starter.wait()
        for pipe in (self.starter.stdin, self.starter.stdout):
            if pipe:
                pipe.close()


def namespaces(
    argv: Sequence[str], kinds: Sequence[str], script: str, *given: object
) -> Namespaces:
    shell = f'set -e\n{script}\nexec "$0" -S -c "$STAY"'
    command = [*argv, "unshare", *(f"--{kind}" for kind in kinds), "--fork", "--kill-child"]
    command += ["sh", "-c", shell, sys.executable, *map(str, given)]
    starter = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {"STAY": _STAY},
    )  # fmt: skip
    assert starter.stdout
    said = starter.stdout.readline()
    if said != "ready\n":
        raise ChildProcessError(f"{said}{starter.stdout.read()}".strip())
    return Namespaces(starter)


@dataclass
class Process:
    """A program on a host, and what it prints."""

    started: "subprocess.Popen[bytes]"
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 300) -> int:
        """Its exit status. Raises AssertionError: it runs longer; its log."""
        try:
            return self.started.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds:g} s:\n{self.text}") from None

    def signal(self, number: int) -> None:
        """Send a signal to the program itself, which `nsenter` started."""
        pid = self.started.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), number)


@dataclass
class Host:
    """A machine of the test."""

    name: str
    number: int
    folder: Path
    switch: Namespaces
    disk: int = 0  # MB of its own disk; 0: as large as the real one
    variables: dict[str, str] = field(default_factory=dict)
    _spaces: Namespaces | None = None
    _programs: int = 0

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def port(self) -> str:
        """The switch's device that leads to it."""
        return f"port{self.number}"

    @property
    def home(self) -> Path:
        """Its own disk, by a path that other hosts see as well unless `disk` is set."""
        return self.folder / self.name

    @property
    def is_on(self) -> bool:
        return self._spaces is not None

    @property
    def spaces(self) -> Namespaces:
        assert self._spaces is not None, f"{self.name} is switched off"
        return self._spaces

    def power_on(self) -> None:
        needed = [self.folder, ROOT, Path(sys.prefix), Path(sys.base_prefix)]
        needed += [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder]
        kept = {str(p) for p in needed if p.resolve().is_relative_to("/tmp") and p.is_dir()}
        self.home.mkdir(exist_ok=True)
        self._spaces = namespaces(
            self.switch.enter("mount"),
            ("net", "mount", "uts", "ipc", "pid", "mount-proc"),
            _BOOT, self.name, self.folder, self.home, self.disk, *kept,
        )  # fmt: skip
        port = f"name {self.port} netns {self.switch.pid}"
        _ip([], f"link add eth0 netns {self.spaces.pid} type veth peer {port}")
        own = f"address add {self.address}/24 dev eth0"
        _ip(self.spaces.enter("net"), own, "link set eth0 up")
        self.heal()

    def power_off(self) -> None:
        """As if the power failed: nobody hears of it, no connection is closed."""
        self.cut()
        self.spaces.end()
        self._spaces = None
        _ip(self.switch.enter("net"), f"link delete dev {self.port}")  # with both ends

    def cut(self) -> None:
        """Lose all packets from and to this host, whose device still looks well."""
        _ip(self.switch.enter("net"), f"link set dev {self.port} nomaster")

    def heal(self) -> None:
        _ip(self.switch.enter("net"), f"link set dev {self.port} master switch up")

    def cut_off(self, seconds: float = 60) -> None:
        """`cut` for a while."""
        self.cut()
        time.sleep(seconds)
        self.heal()

    def slow(self) -> None:
        """1 Mbit/s in both directions."""
        self._queue("replace", SLOW)

    def fast(self) -> None:
        """As before `slow`."""
        self._queue("delete", "")

    def _queue(self, change: str, discipline: str) -> None:
        ends = ((self.spaces.enter("net"), "eth0"), (self.switch.enter("net"), self.port))
        for argv, device in ends:
            command = [*argv, "tc", "qdisc", change, "dev", device, "root", *discipline.split()]
            subprocess.run(command, check=True, capture_output=True, text=True)

    def set_clock(self, hours: float) -> None:
        """Let the programs that start from now on see another time of day; 0: the right one.

        Raises CalledProcessError: no C compiler. See clock.c for what cannot have a wrong clock.
        """
        if not hours:
            self.variables = {}
            return
        library = self.folder / "clock.so"
        if not library.exists():
            source = str(Path(__file__).with_name("clock.c"))
            subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), source], check=True)
        self.variables = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": f"{hours * 3600:.0f}"}

    def fill(self, folder: Path | None = None, left: int = 0) -> Path:
        """Leave `left` bytes of its own disk, or of another that was made small; what to delete."""
        filler = (folder or self.home) / "filler"
        code = """if True:  # others write there meanwhile
            import os, sys
            file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
            for attempt in range(1000):
                found = os.fstatvfs(file)
                size = found.f_bavail * found.f_frsize - int(sys.argv[2])
                assert size < 1 << 30, size
                if size <= 0:
                    break
                try:
                    os.posix_fallocate(file, os.fstat(file).st_size, size)
                except OSError:
                    continue
        """
        self.run([sys.executable, "-S", "-c", code, str(filler), str(left)])
        return filler

    def outside(self, path: Path) -> Path:
        """Where the test finds a file of this host's own mounts."""
        return Path(f"/proc/{self.spaces.pid}/root{path}")

    def _command(self, argv: Sequence[str], cwd: Path | None) -> list[str]:
        variables = {"HOME": str(self.home), "TMPDIR": "/tmp"} | self.variables
        enter = self.spaces.enter("net", "mount", "uts", "ipc", "pid")
        there = ["sh", "-c", 'cd "$0" && exec "$@"', str(cwd or self.home), "env"]
        return [*enter, *there, *(f"{k}={v}" for k, v in variables.items()), *argv]

    def run(self, argv: Sequence[str], cwd: Path | None = None, seconds: float = 300) -> str:
        """Run a program to its end; what it prints on stdout. Raises CalledProcessError."""
        done = subprocess.run(
            self._command(argv, cwd), check=True, capture_output=True, text=True, timeout=seconds
        )
        return done.stdout

    def start(
        self, argv: Sequence[str], cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:  # fmt: skip
        """Start a program; its output goes to a log in the test's folder."""
        self._programs += 1
        log = self.folder / f"{self.name}-{self._programs}.log"
        with open(log, "wb") as out:
            started = subprocess.Popen(
                self._command(argv, cwd), env=environment, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip
        return Process(started, log)


def until_answers(port: int) -> str:
    """Lines of Python that wait until a server of their own host accepts connections."""
    return f"""
import socket, time
host = socket.gethostbyname(socket.gethostname())
while True:
    try:
        socket.create_connection((host, {port}), 5).close()
        break
    except OSError:
        time.sleep(0.3)
"""


def join(pid: int) -> None:
    """Move this process, one that was forked for it, into the network of a host.

    pid: of the host's first process, `host.spaces.pid`.
    """
    library = ctypes.CDLL(None, use_errno=True)
    for kind in ("net", "uts"):
        descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        if library.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"setns {kind}")
        os.close(descriptor)


def _ip(argv: Sequence[str], *commands: str) -> None:
    subprocess.run(
        [*argv, "ip", "-batch", "-"], input="\n".join(commands), check=True, capture_output=True,
        text=True,
    )  # fmt: skip


@contextmanager
def machines(
    folder: Path, *names: str, disks: Mapping[str, int] | None = None, shared: int = 0
) -> Iterator[list[Host]]:
    """Hosts of these names that reach each other, on until the block ends.

    folder: of the test; all hosts see it. disks: the size of a host's own disk in MB. shared: MB
    of the folder `shared` in it, which all hosts see, where it is to be small.
    """
    (folder / "shared").mkdir(exist_ok=True)
    lines = [f"10.77.0.{number} {name}" for number, name in enumerate(names, 1)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")
    with ExitStack() as stack:
        switch = namespaces([], ("net", "mount"), _SWITCH, shared, folder / "shared")
        stack.callback(switch.end)
        hosts = []
        for number, name in enumerate(names, 1):
            host = Host(name, number, folder, switch, (disks or {}).get(name, 0))
            host.power_on()
            stack.callback(lambda host=host: host._spaces and host._spaces.end())
            hosts.append(host)
        yield hosts
