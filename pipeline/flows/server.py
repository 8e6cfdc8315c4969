"""The Prefect server that a build reports to: the user's own, or an embedded one.

What could be wrong is asked before Prefect is imported, which takes seconds and reads its settings.
"""

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from lasr.doctor import prefect
from lasr.errors import UserError, one_line, printable

log = logging.getLogger(__name__)

STARTUP = 240  # seconds; a new database on an idle machine takes 10, on a busy one ten times that
EMBEDDED = Path(__file__).with_name("embedded.py")
# As Prefect's own embedded server: without the web pages.
SERVES = {
    "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1",
}  # fmt: skip
REVIVALS = 3  # of an embedded server that ends by itself
Client = dict[str, str]  # the environment variables by which a process uses an embedded server

_running: "tuple[subprocess.Popen[bytes], Client] | None" = None  # the one of this process


class NotStarted(Exception):
    """The embedded server ended, or did not come up in time; its last words."""


def connect() -> Client | None:
    """Return None where the user chose a Prefect server, and else how to reach an embedded one.

    The embedded server ends with this process, also if that is killed. Where Prefect's profiles or
    database cannot be used, a warning says so, and the run is recorded in a temporary database.
    Raises UserError: the chosen server does not answer as one.
    """
    if fault := prefect.profile_fault():
        log.warning("%s; building without Prefect's profiles", fault)
        os.environ[prefect.PROFILES_PATH] = f"{_temporary_folder()}/profiles.toml"
    if server := prefect.server():
        prefect.check_server(server)
        return None
    if _running is None:
        _start()
    assert _running
    return _running[1]


def chosen() -> None:
    """Check the server that the user chose, as `lasr serve` needs one. Raises UserError."""
    if fault := prefect.profile_fault():
        raise UserError(fault, "correct or remove that file")
    server = prefect.server()
    if server is None:
        raise UserError(
            "PREFECT_API_URL is not set, so there is no server to register the deployment with",
            "start `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    if fault := prefect.clock_fault(prefect.check_server(server)):
        raise UserError(fault, prefect.SET_CLOCK)


def load_flow() -> ModuleType:
    """Import `pipeline.flows.flow`, and Prefect with it. Raises UserError: a setting is wrong."""
    try:
        from pipeline.flows import flow
    except Exception as error:
        if not type(error).__module__.startswith("pydantic"):
            raise
        raise UserError(
            f"Prefect refuses its settings ({one_line(error, 200)})",
            "correct the variable PREFECT_…, prefect.toml or the profile that sets it, or run with"
            f" {prefect.PROFILE}=ephemeral",
        ) from error
    return flow


def _start() -> None:
    """Start the embedded server on the user's database, or else on a temporary one."""
    fault = prefect.home_fault()
    if not fault:
        try:
            return _embedded({})
        except NotStarted as error:
            fault = f"Prefect's embedded server did not start ({error})"
    log.warning("%s; this run is recorded in a temporary database only", fault)
    os.environ[prefect.HOME] = home = _temporary_folder()  # Prefect here writes to it, too
    database = dict.fromkeys(prefect.DATABASE, "")
    database[prefect.DATABASE[0]] = f"sqlite+aiosqlite:///{home}/prefect.db"
    try:
        return _embedded(database)
    except NotStarted as error:
        raise UserError(
            f"Prefect's embedded server did not start ({error})", "run `lasr doctor`"
        ) from error


def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="lasr-prefect-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _embedded(variables: dict[str, str]) -> None:
    """Start an embedded server and import Prefect as its client. Raises NotStarted."""
    global _running
    password = f"lasr:{secrets.token_hex(16)}"  # other users and web pages do not know it
    environment = {**os.environ, **SERVES, **variables, prefect.URL: ""}
    environment = {k: v for k, v in environment.items() if v or k not in prefect.DATABASE}
    environment["PREFECT_SERVER_API_AUTH_STRING"] = password
    with tempfile.TemporaryFile() as output:
        process, port = _launch(0, environment, output)
        address = f"http://127.0.0.1:{port}/api"
        client = {prefect.URL: address, prefect.AUTH: password}
        # Registered before Prefect's own, so that it runs after Prefect has sent its last lines.
        atexit.register(_stop_running)
        _running = process, client
        with _variables(client | {"PREFECT_SERVER_EPHEMERAL_ENABLED": "0"}):
            load_flow()  # meanwhile
        try:
            _wait(process, address, output)
        except NotStarted:
            _stop(process)
            _running = None
            raise
    threading.Thread(target=_revive, args=(port, environment), name="revive", daemon=True).start()


def _launch(
    port: int, environment: dict[str, str], output: IO[bytes] | int
) -> tuple["subprocess.Popen[bytes]", int]:
    """Start a server process on a port of this machine, 0 for a free one; returns both."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(128)
        descriptor, number = listening.fileno(), int(listening.getsockname()[1])
        inherits = os.name != "nt"
        if not inherits:
            listening.close()  # for a moment, another program could take the port
        # Ctrl-C in a terminal is for the command alone.
        apart: dict[str, Any] = {"start_new_session": True, "pass_fds": [descriptor]}
        if not inherits:
            apart = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        own = [str(descriptor if inherits else -1), str(os.getpid()), str(number)]
        process = subprocess.Popen(
            [sys.executable, "-P", str(EMBEDDED), *own],
            env=environment,
            stdin=subprocess.DEVNULL if inherits else subprocess.PIPE,
            stdout=output,
            stderr=output,
            **apart,
        )
        # The process has the socket: what connects now waits until it serves.
        return process, number


def _revive(port: int, environment: dict[str, str]) -> None:
    """Start the embedded server again when it ends by itself, with its address and database.

    Prefect asks a server that is gone for each task and event again, for seconds each: the build
    would go on for hours after its last part.
    """
    global _running
    for left in reversed(range(REVIVALS + 1)):
        if _running is None:
            return
        process, client = _running
        status = process.wait()
        if _running is None:  # this command ends
            return
        if not left:
            break
        log.warning("Prefect's embedded server ended (%s); it is started again", status)
        try:
            _running = _launch(port, environment, subprocess.DEVNULL)[0], client
        except OSError as error:
            log.warning("it cannot be started: %s", error)
            break
    line = "error: Prefect's embedded server ends again and again; what is done is kept: run `lasr"
    print(f"{line} doctor`, then the same command again", file=sys.stderr, flush=True)
    os._exit(1)


def _stop_running() -> None:
    """Stop the embedded server, which ends with its command."""
    global _running
    if _running is not None:
        (process, _), _running = _running, None
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", address: str, output: IO[bytes]) -> None:
    """Wait until the server is healthy. Raises NotStarted."""
    import httpx

    end = time.monotonic() + STARTUP
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/health", timeout=1, trust_env=False).text.strip() == "true":
                return
        time.sleep(0.05)
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines() or ["no message"]
    raise NotStarted(printable(lines[-1])[:200])


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
