"""Real servers for the tests, on loopback and on ports of their own: PostgreSQL and Prefect's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PREFECT = str(BIN / "prefect")


def migrated_database(home: Path) -> None:
    """Make a new database of Prefect in `home`, `prefect.db`."""
    variables = environment(home) | {"PREFECT_HOME": str(home)}
    command = [PREFECT, "server", "database", "upgrade", "--yes"]
    subprocess.run(command, cwd=home, env=variables, check=True, capture_output=True)


def environment(folder: Path, database: Path | None = None) -> dict[str, str]:
    """Prefect with a home in `folder`; what the user has set up is not touched.

    database: a migrated one to begin with a copy of.
    """
    if database:
        (folder / "prefect").mkdir()
        shutil.copy(database, folder / "prefect" / "prefect.db")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return kept | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PWD": str(folder),  # as a shell sets it
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(what: str, ready: Callable[[], object], log: Path, seconds: int = 500) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready():
            return
        time.sleep(0.3)
    raise AssertionError(f"{what} did not come up:\n{log.read_text()}")


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=30).status == 200)
    except OSError:
        return False


@contextmanager
def process(
    argv: list[str],
    cwd: Path,
    environment: dict[str, str],
    user: str | None = None,
    end: signal.Signals = signal.SIGKILL,
) -> Iterator[Path]:
    """A process in the background, with its children; yields its log.

    end: the signal that stops them. Prefect's programs take seconds to stop when they are asked
    to, and nothing here is worth the wait.
    """
    log = cwd / f"{Path(argv[0]).name}-{free_port()}.log"
    with open(log, "w") as out:
        started = subprocess.Popen(
            argv,
            cwd=cwd,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            user=user,
        )
    try:
        yield log
    finally:
        os.killpg(started.pid, end)
        with suppress(subprocess.TimeoutExpired):
            started.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def postgresql_bin() -> Path | None:
    """Where Debian's package puts initdb and its kin, or None where it is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return versions[-1].parent if versions else Path(on_path).parent if on_path else None


@contextmanager
def postgresql(programs: Path) -> Iterator[str]:
    """A PostgreSQL server with an empty database; yields its URL, postgresql://…"""
    # It refuses to run as root, its socket's path must be short, and its user must reach both:
    # hence a folder directly in /tmp.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="lasr-pg-", dir="/tmp"))
    if user:
        shutil.chown(folder, user)
    port = free_port()
    try:
        initdb = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "prefect"]
        initdb += ["--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run(initdb, cwd=folder, user=user, check=True, capture_output=True)
        serve = [str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]
        serve += ["-h", "127.0.0.1", "-p", str(port), "-F"]
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        # SIGQUIT: at once, whoever is connected; SIGKILL would leave its shared memory.
        with process(serve, folder, dict(os.environ), user, signal.SIGQUIT) as log:
            wait_for("PostgreSQL", lambda: subprocess.run(ready).returncode == 0, log)
            yield f"postgresql://prefect@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def prefect_server(cwd: Path, environment: dict[str, str]) -> Iterator[str]:
    """`prefect server start`; yields the address of its API."""
    port = free_port()
    argv = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    api = f"http://127.0.0.1:{port}/api"
    with process(argv, cwd, environment) as log:
        wait_for("Prefect's server", lambda: answers(f"{api}/health"), log)
        yield api
