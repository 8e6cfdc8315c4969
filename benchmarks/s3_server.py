"""A server on loopback that speaks as much of S3 as reading a manifest takes.

Each sub-folder of a folder is a bucket. Every answer comes `delay` seconds after its request, which
is what a round trip costs; bandwidth is that of loopback. It costs little CPU of its own: files are
sent by the kernel. moto's server takes 5 to 10 ms for each request and holds all objects in memory.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_XML = "<?xml version='1.0'?>"
_PAGE = 1000  # keys in an answer to ListObjectsV2


@dataclass
class S3:
    """A running server. What it does to requests can be changed at any time.

    fault: given the number of a request, from 1, and its path, the status to answer with, 0: as
    asked. asked: method, path and range of each request.
    """

    folder: Path
    delay: float = 0.0
    fault: Callable[[int, str], int] = lambda number, path: 0
    port: int = 0
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0  # bytes of files
    lock: threading.Lock = field(default_factory=threading.Lock)

    def counts(self) -> tuple[int, int]:
        """How many requests came, and bytes of files went, since the last call."""
        with self.lock:
            found = len(self.asked), self.sent
            self.asked.clear()
            self.sent = 0
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which this server is found."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


@contextmanager
def serving(folder: Path, delay: float = 0.0) -> Iterator[S3]:
    """Serve the sub-folders of a folder as buckets."""
    state = S3(folder, delay)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            time.sleep(state.delay)  # a connection is a round trip, too
            super().setup()

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            url, asked_range = urlsplit(self.path), self.headers.get("Range", "")
            path = unquote(url.path).strip("/")
            with state.lock:
                state.asked.append((self.command, path, asked_range))
                number = len(state.asked)
            time.sleep(state.delay)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            file = state.folder / path
            if status := state.fault(number, path):
                self._error(status)
            elif "/" not in path and "list-type" in query and file.is_dir():
                self._list(file, query)
            elif "/" not in path:
                self._xml(200, "") if file.is_dir() else self._error(404, "NoSuchBucket")
            elif file.is_file():
                self._file(file, asked_range)
            else:
                self._error(404)

        def _error(self, status: int, code: str = "") -> None:
            code = code or CODES[status]
            self._xml(status, f"{_XML}<Error><Code>{code}</Code><Message>{code}</Message></Error>")

        def _xml(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        def _list(self, bucket: Path, query: dict[str, str]) -> None:
            prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
            found = _entries(bucket, prefix, query.get("delimiter", ""))
            names = sorted(name for name in found if name > after)
            shown = names[: int(query.get("max-keys", _PAGE))]
            about = (
                f"<Name>{bucket.name}</Name><Prefix>{escape(prefix)}</Prefix>"
                f"<KeyCount>{len(shown)}</KeyCount>"
                f"<IsTruncated>{str(len(shown) < len(names)).lower()}</IsTruncated>"
            )
            if len(shown) < len(names):
                last = escape(shown[-1])
                about += f"<NextContinuationToken>{last}</NextContinuationToken>"
            entries = "".join(found[name] for name in shown)
            self._xml(200, f"{_XML}<ListBucketResult>{about}{entries}</ListBucketResult>")

        def _file(self, file: Path, asked_range: str) -> None:
            size = file.stat().st_size
            first, last = 0, size - 1
            if asked_range:
                start, _, stop = asked_range.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(stop or last), last)
            self.send_response(206 if asked_range else 200)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True))
            self.send_header("ETag", _etag(file))
            self.end_headers()
            if self.command == "HEAD":
                return
            left = last - first + 1
            with state.lock:
                state.sent += left  # before they go: who has them may look at once
            with open(file, "rb") as content:
                while left:
                    done = os.sendfile(self.connection.fileno(), content.fileno(), first, left)
                    first, left = first + done, left - done

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass  # the client was killed

    with Server(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield state
        server.shutdown()


def _entries(bucket: Path, prefix: str, delimiter: str) -> dict[str, str]:
    """The XML of each file whose key begins so, and of each folder up to the next delimiter."""
    found = {}
    for file in bucket.rglob("*"):
        key = file.relative_to(bucket).as_posix()
        if not key.startswith(prefix) or not file.is_file():
            continue
        name, has_more, _ = key[len(prefix) :].partition(delimiter or "\0")
        if has_more:
            folder = f"{prefix}{name}{delimiter}"
            found[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            continue
        about = file.stat()
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(about.st_mtime))
        found[key] = (
            f"<Contents><Key>{escape(key)}</Key><Size>{about.st_size}</Size>"
            f"<LastModified>{modified}</LastModified><ETag>{_etag(file)}</ETag></Contents>"
        )
    return found


def _etag(file: Path) -> str:
    state = file.stat()
    return f'"{hashlib.md5(f"{file}{state.st_size}{state.st_mtime_ns}".encode()).hexdigest()}"'
