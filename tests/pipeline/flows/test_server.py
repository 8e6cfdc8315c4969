"""The embedded server ends with its command; a fault of a user's Prefect is one line."""

import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path

import psutil
import pytest

from lasr.doctor import prefect
from lasr.doctor.database import known_revisions
from lasr.errors import UserError
from pipeline.flows import server as servers
from pipeline.flows.embedded import GRACE, PAUSE
from tests.support.servers import ROOT, environment, free_port

# Answers as the server does, without the seconds of importing Prefect; DEAF: it ignores SIGTERM.
UVICORN = """
import http.server, os, signal
class Config:
    def __init__(self, *a, **k): pass
class Server:
    started = True
    def __init__(self, config): pass
    def run(self, sockets):
        if os.environ.get("DEAF"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"true")
        serving = http.server.HTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
        serving.socket = sockets[0]
        serving.serve_forever()
"""
COMMAND = """
import os, sys, time
from pipeline.flows import server
server.load_flow = lambda: None
server.connect()
process, client = server._running
print(process.pid, flush=True)
exec(sys.argv[1])
"""
WAIT = "time.sleep(100)"


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """The environment of a command whose embedded server is a small one."""
    (tmp_path / "uvicorn.py").write_text(UVICORN)
    return environment(tmp_path) | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


def start(body: str, environment: dict[str, str], cwd: Path) -> tuple["subprocess.Popen[str]", int]:
    """A command with its embedded server, and the server's process id."""
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, body],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert command.stdout
    return command, int(command.stdout.readline())


def gone(pid: int) -> bool:
    """Whether a process has ended, within the time that it has for that."""
    end = time.monotonic() + PAUSE + GRACE + 100  # on a busy machine
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize("body", ["pass", "1 / 0", "sys.exit(3)", "os._exit(3)", "os.abort()"])
def test_the_embedded_server_ends_with_a_command_that_ends(
    body: str, stub: dict[str, str], tmp_path: Path
) -> None:
    command, server = start(body, stub, tmp_path)
    command.wait(200)
    assert gone(server)


@pytest.mark.parametrize(
    ("number", "deaf"),
    [
        (signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGINT, False),
        (signal.SIGKILL, False), (signal.SIGKILL, True),
    ],
)  # fmt: skip
def test_the_embedded_server_ends_with_a_command_that_is_killed(
    number: signal.Signals, deaf: bool, stub: dict[str, str], tmp_path: Path
) -> None:
    command, server = start(WAIT, stub | {"DEAF": "1" if deaf else ""}, tmp_path)
    assert psutil.pid_exists(server)
    os.killpg(command.pid, number)  # as a terminal sends it: to all of the group
    command.wait(200)
    assert gone(server)


def test_a_server_that_is_killed_is_started_again(stub: dict[str, str], tmp_path: Path) -> None:
    """With its address, so that Prefect's clients find it; and the third time is the last."""
    body = """
import httpx, os, psutil
for _ in range(server.REVIVALS + 1):
    before = server._running[0]
    before.kill()
    while server._running[0] is before:
        time.sleep(0.05)
    print(server._running[0].pid, httpx.get(client["PREFECT_API_URL"] + "/health").text, flush=True)
"""
    command, server = start(body, stub, tmp_path)
    assert command.stdout
    lines = command.stdout.read().splitlines()
    assert command.wait(200) == 1 and [line.split()[1] for line in lines] == ["true"] * 3
    pids = [server, *(int(line.split()[0]) for line in lines)]
    assert len(set(pids)) == len(pids) and all(gone(pid) for pid in pids)


def test_a_terminals_ctrl_c_does_not_reach_the_server(stub: dict[str, str], tmp_path: Path) -> None:
    """It would end before the command has reported to it."""
    body = f"import signal; signal.signal(2, lambda *a: None); print('ready', flush=True); {WAIT}"
    command, server = start(body, stub, tmp_path)
    assert command.stdout and command.stdout.readline() == "ready\n"
    os.killpg(command.pid, signal.SIGINT)
    time.sleep(PAUSE)
    assert psutil.pid_exists(server) and command.poll() is None
    command.kill()
    command.wait()
    assert gone(server)


# --- what a user may have set up ------------------------------------------------------------------

Place = Callable[[Path, pytest.MonkeyPatch], object]


def profile(text: str, encoding: str = "utf-8") -> Place:
    """A profiles.toml; DOWN stands for a server that is not there."""

    def place(home: Path, patch: pytest.MonkeyPatch) -> None:
        down = f"http://127.0.0.1:{free_port()}/api"
        (home / "profiles.toml").write_text(text.replace("DOWN", down), encoding=encoding)

    return place


def variable(name: str, value: str) -> Place:
    return lambda home, patch: patch.setenv(name, value.replace("DOWN", f"127.0.0.1:{free_port()}"))


def answering(answer: bytes) -> Place:
    """PREFECT_API_URL names a server that says `answer` to everybody; b"": nothing, ever."""

    def place(home: Path, patch: pytest.MonkeyPatch) -> None:
        listening = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            held = []
            while True:
                connection = listening.accept()[0]
                held.append(connection)
                if answer:
                    connection.recv(4096)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{listening.getsockname()[1]}/api")

    return place


def http(status: str, body: str) -> Place:
    return answering(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


def database(revision: str, mode: int = 0o644) -> Place:
    def place(home: Path, patch: pytest.MonkeyPatch) -> None:
        with closing(sqlite3.connect(home / "prefect.db")) as file, file:
            file.execute("CREATE TABLE alembic_version (version_num VARCHAR)")
            file.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        (home / "prefect.db").chmod(mode)

    return place


def damaged(home: Path, patch: pytest.MonkeyPatch) -> None:
    (home / "prefect.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)


def locked(home: Path, patch: pytest.MonkeyPatch) -> object:
    file = sqlite3.connect(home / "prefect.db", isolation_level=None)
    file.execute("CREATE TABLE a (b)")
    file.execute("BEGIN EXCLUSIVE")
    return file  # locked as long as this lives


KNOWN = sorted(known_revisions())[0]
MINE = 'active = "mine"\n[profiles.mine]\n'
CASES: dict[str, tuple[Place, str, str]] = {
    # what is set up; what becomes of a build: fine, temporary (database) or refused; what is said
    "nothing": (lambda *_: None, "fine", ""),
    "a profile without a URL": (profile(MINE + 'PREFECT_LOGGING_LEVEL = "INFO"\n'), "fine", ""),
    "an unknown setting": (profile(MINE + 'PREFECT_NO_SUCH = "INFO"\n'), "fine", ""),
    "a profile that is not there": (profile('active = "other"\n[profiles.mine]\n'), "fine", ""),
    "an empty URL over a profile's": (
        lambda *to: (
            profile(MINE + 'PREFECT_API_URL = "DOWN"\n')(*to), variable("PREFECT_API_URL", "")(*to)
        ),
        "fine", "",
    ),
    "this version's database": (database(KNOWN), "fine", ""),
    "no TOML": (profile('active = "mine\n'), "fine", "profiles.toml: no profiles can be read"),
    "no table": (profile("active = 3\nprofiles = 4\n"), "fine", "'profiles' is not a table"),
    "Latin-1": (profile("# é\n", "latin-1"), "fine", "can't decode byte 0xe9"),
    "a profile's server is down": (
        profile(MINE + 'PREFECT_API_URL = "DOWN"\n'), "refused",
        r"\(profile 'mine' of .*profiles.toml\) does not answer .*PREFECT_API_URL= lasr build",
    ),
    "a server is down": (
        variable("PREFECT_API_URL", "http://DOWN/api"), "refused", "does not answer"
    ),
    "no address": (variable("PREFECT_API_URL", "DOWN"), "refused", "does not answer"),
    "a server that never answers": (answering(b""), "refused", "does not answer in time; start"),
    "a web page": (http("200 OK", "<html>"), "refused", "answers 200, not as Prefect does"),
    "an endless answer": (
        answering(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_000)), "refused", "not as Prefect does"
    ),
    "not HTTP": (answering(b"220 smtp ready\r\n"), "refused", "does not answer"),
    "a wrong path": (http("404 Not Found", "{}"), "refused", "answers 404"),
    "a password": (http("401 Unauthorized", "{}"), "refused", "set PREFECT_API_AUTH_STRING to"),
    "not healthy": (http("200 OK", "false"), "refused", "is not healthy"),
    "healthy": (http("200 OK", "true"), "theirs", ""),
    "a newer database": (database("ffffffffffff"), "temporary", "prefect.db: .* another version"),
    "a damaged database": (damaged, "temporary", "prefect.db: .* cannot be used"),
    "a locked database": (locked, "temporary", "prefect.db: .*locked"),
    "a folder that cannot be written": (
        variable("PREFECT_HOME", "/proc/prefect"), "temporary", "/proc/prefect: .* be written"
    ),
    "a file for a folder": (
        variable("PREFECT_HOME", "/etc/passwd"), "temporary", "/etc/passwd: .* cannot be written"
    ),
    "PostgreSQL is down": (
        variable("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://a:b@DOWN/c"),
        "temporary", "127.0.0.1: Prefect's database does not answer",
    ),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PREFECT_HOME and no other setting of Prefect's."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "prefect").mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prefect, "PATIENCE", 1)
    monkeypatch.setattr("lasr.doctor.database.LOCK_PATIENCE", 0.1)
    return tmp_path / "prefect"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """With which variables the embedded server would have been started."""
    variables: list[dict[str, str]] = []

    def embedded(given: dict[str, str]) -> None:
        variables.append(given)
        monkeypatch.setattr(servers, "_running", (psutil.Process(), {"PREFECT_API_URL": "mine"}))

    before = dict(os.environ)
    monkeypatch.setattr(servers, "_running", None)
    monkeypatch.setattr(servers, "_embedded", embedded)
    yield variables
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("case", CASES)
def test_a_build_and_the_doctor_see_the_same(
    case: str,
    home: Path,
    started: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place, outcome, said = CASES[case]
    held = place(home, monkeypatch)
    try:
        results = list(prefect.check())
    except UserError as error:
        assert outcome == "refused"
        with pytest.raises(UserError, match=said) as raised:
            servers.connect()
        assert str(raised.value) == str(error) and raised.value.fix and not started
    else:
        client = servers.connect()
        assert (client is None) == (outcome == "theirs")
        problems = [result for result in results if result.level != "ok"]
        assert len(problems) == bool(said) and all(result.fix for result in problems)
        logged = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(logged) == bool(said)
        if said:
            assert re.search(said, problems[0].found)
            assert logged[0].startswith(problems[0].found)
        temporary = [bool(variables) for variables in started]
        assert temporary == {"fine": [False], "temporary": [True], "theirs": []}[outcome]
    del held


def test_a_password_is_sent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Prefect sends it, with the headers that a proxy may ask for."""
    seen = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection = listening.accept()[0]
        seen.append(connection.recv(4096).decode().lower())
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    monkeypatch.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Door": "open"}')
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
    Path("prefect.toml").write_text(f'[api]\nurl = "{address}/"\n')
    assert prefect.server() == prefect.Server(address, "prefect.toml")
    prefect.check_server(prefect.Server(address, "prefect.toml"))
    thread.join()
    assert "authorization: basic bwu6c2vjcmv0" in seen[0] and "x-door: open" in seen[0]


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (
            2 * 86400,
            r"clock is 2880 minutes behind that of Prefect's server, .* later; set the clo",
        ),
        (
            -7200,
            r"clock is 120 minutes ahead of that of Prefect's server, .* earlier; set the cloc",
        ),
        (20, ""),
    ],
)
def test_a_clock_that_differs_from_the_servers_is_named(
    ahead: int, said: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its own clock decides when runs start: `lasr serve`. A build does not mind."""
    date = formatdate(time.time() + ahead, usegmt=True).encode()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(3):
            with listening.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Length: 4\r\n\r\ntrue" % date
                )

    thread = threading.Thread(target=serve)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
    monkeypatch.setenv("PREFECT_API_URL", address)
    assert servers.connect() is None
    warnings = [result.found for result in prefect.check() if result.level == "warning"]
    assert bool(warnings) == bool(said)
    if said:
        with pytest.raises(UserError, match=said) as raised:
            servers.chosen()
        assert raised.value.problem == warnings[0]
    else:
        servers.chosen()
    thread.join()
    listening.close()


def test_a_server_that_does_not_start_is_tried_on_a_temporary_database(
    home: Path, started: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    second = servers._embedded

    def embedded(variables: dict[str, str]) -> None:
        second(variables)
        if not variables:
            raise servers.NotStarted("database disk image is malformed")

    monkeypatch.setattr(servers, "_embedded", embedded)
    assert servers.connect()
    assert [bool(variables) for variables in started] == [False, True]
    assert "did not start (database disk image is malformed); this run is" in caplog.text
    monkeypatch.setattr(servers, "_running", None)
    monkeypatch.setattr(
        servers, "_embedded", lambda _: (_ for _ in ()).throw(servers.NotStarted("x"))
    )
    with pytest.raises(UserError, match=r"did not start \(x\); run `lasr doctor`"):
        servers.connect()


def test_serving_needs_a_server_that_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="PREFECT_API_URL is not set"):
        servers.chosen()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(UserError, match="does not answer"):
        servers.chosen()
    (home / "profiles.toml").write_text("active = 3")
    with pytest.raises(UserError, match=r"'active' is not a name.*correct or remove"):
        servers.chosen()
