"""An HTTP server on loopback: a model hub and a plain file host, with faults on request."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lasr.storage.filesystem import file_system
from tests.support.hub_api import Hub

COMMIT = "c0" * 20
RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Fault:
    """One faulty GET: a status, a changed last byte, or a cut or a wait after so many bytes."""

    status: int = 0
    spoilt: bool = False
    shifted: bool = False  # sends another range than requested
    cut: int | None = None
    wait: int | None = None


@dataclass
class Seen:
    """A request and its answer."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


@dataclass
class Host:
    """files: by path, or by repository/file; faults: by end of path, one for each GET.

    hub: repositories that can be listed and written.
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    ranges: bool = True
    versions: bool = True  # whether answers have an ETag
    locked: bool = False  # whether the hub requires its terms to be accepted
    patience: float = 30.0  # seconds that a Fault.wait lasts
    hub: Hub = field(default_factory=Hub)
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def got(self, end: str) -> list[Seen]:
        """The GETs of a path that were answered with bytes."""
        return [each for each in self.seen if each.method == "GET" and each.path.endswith(end)]


@contextmanager
def serve() -> Iterator[Host]:
    """Run a host until the end of the context."""
    host = Host()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            self.call()

        def do_PUT(self) -> None:
            self.call()

        def call(self) -> None:
            """A call of the hub's API."""
            token = self.headers["Authorization"]
            seen = Seen(self.command, self.path, None, token)
            host.seen.append(seen)
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, answer, headers = host.hub.answer(
                self.command, self.path, content, token, host.address
            )
            text = json.dumps(answer).encode()
            self.say(seen, status, {"Content-Type": "application/json"} | headers, text)

        def answer(self, body: bool) -> None:
            if self.path.startswith("/api/"):
                return self.call()
            seen = Seen(
                self.command, self.path, self.headers["Range"], self.headers["Authorization"]
            )
            host.seen.append(seen)
            name, headers = self.path.lstrip("/"), {}
            if (in_repository := host.hub.content(name)) is not None:
                return self.from_repository(seen, in_repository, body)
            if on_hub := RESOLVE.fullmatch(self.path):
                name = f"{on_hub['repository']}/{on_hub['file']}"
                headers["X-Repo-Commit"] = COMMIT
            elif name.startswith("store/"):
                name = name.removeprefix("store/")
            if on_hub and host.locked:
                return self.say(seen, 403, {"X-Error-Code": "GatedRepo"})
            if name not in host.files:
                error = {"X-Error-Code": "EntryNotFound"} if on_hub else {}
                return self.say(seen, 404, error | headers)
            content = host.files[name]
            digest = hashlib.sha256(content).hexdigest()
            if on_hub and name.endswith(".safetensors"):  # large files are on another host
                headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                headers["Location"] = f"http://localhost:{host.port}/store/{name}"
                return self.say(seen, 302, headers)
            if host.versions:
                headers["ETag"] = f'"{digest[:40]}"'
            queue = host.faults.get(self.path.rsplit("/", 1)[-1], []) if body else []
            fault = queue.pop(0) if queue else Fault()
            if fault.status:
                return self.say(seen, fault.status, {})
            if fault.spoilt:
                content = content[:-1] + bytes([content[-1] ^ 1])
            start, status = 0, 200
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            same = self.headers["If-Range"] in (None, headers.get("ETag"))
            if wanted and same and host.ranges:
                start, status = int(wanted[1]), 206
                if start >= len(content):
                    return self.say(seen, 416, {"Content-Range": f"bytes */{len(content)}"})
                start -= fault.shifted
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.say(
                seen, status, headers, content[start:] if body else None, fault, len(content)
            )

        def from_repository(self, seen: Seen, content: bytes, body: bool) -> None:
            """A file of a repository, or the range of it that is asked for."""
            digest = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            start, status, length = 0, 200, len(content)
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
                start, status = int(wanted[1]), 206
                end = min(int(wanted[2] or length - 1), length - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{length}"
                content = content[start : end + 1]
            self.say(seen, status, headers, content if body else None, length=len(content))

        def say(
            self, seen: Seen, status: int, headers: dict[str, str], body: bytes | None = b"",
            fault: Fault = Fault(), length: int = 0,  # noqa: B008
        ) -> None:  # fmt: skip
            seen.status = status
            self.send_response(status)
            self.send_header("Content-Length", str(length if body is None else len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            for until in (fault.cut, fault.wait, len(body or b"")):
                if until is not None and body:
                    self.wfile.write(body[seen.sent : until])
                    self.wfile.flush()
                    seen.sent = max(seen.sent, min(until, len(body)))
                    if until == fault.cut:
                        self.close_connection = True
                        return
                    if until == fault.wait:
                        host.go_on.wait(host.patience)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: object) -> None:
            pass  # the client was killed

    with Server(("127.0.0.1", 0), Handler) as server:
        host.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield host
        host.go_on.set()
        server.shutdown()


def reached_by_huggingface_hub(host: Host, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` use this host, with no token of this machine.

    Uploads go to the large-file storage over HTTP: Xet's protocol is not spoken here.
    """
    from huggingface_hub import HfFileSystem, constants

    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", host.address)
    monkeypatch.setenv("HF_HOME", str(home))
    for name, value in (
        ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True),
        ("HF_TOKEN_PATH", str(home / "token")),
    ):  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    HfFileSystem.clear_instance_cache()
    file_system.cache_clear()
