"""A folder as an S3 bucket on this machine, read only, each answer some milliseconds late.

    python -m benchmarks.queries.server FOLDER 20

It prints its address, then serves until it is ended. `GET /-/counts` answers how many requests came
and how many bytes of objects were sent, and starts counting anew. Written for benchmarks, because
moto's server needs 5 to 10 ms of CPU for each request and holds all objects in memory.
"""

import asyncio
import functools
import json
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000  # keys of an answer to ListObjectsV2


class Bucket:
    """Serves the files below a folder; the name of the bucket is the first component of a path."""

    def __init__(self, folder: Path, delay: float):
        self.folder, self.delay = folder, delay
        self.requests: dict[str, int] = {}
        self.sent = self.latest = self.at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, in turn."""
        await asyncio.sleep(self.delay)  # a connection is a round trip, too
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, target, _ = head.split(b" ", 2)
                if target == b"/-/counts":
                    counts = {"requests": self.requests, "bytes": self.sent, "at_once": self.latest}
                    self.requests, self.sent, self.latest = {}, 0, 0
                    writer.write(_head(200, {"Content-Length": len(json.dumps(counts))}))
                    writer.write(json.dumps(counts).encode())
                    continue
                self.at_once += 1
                self.latest = max(self.latest, self.at_once)
                await asyncio.sleep(self.delay)
                self.at_once -= 1
                self._answer(method.decode(), target.decode(), head.decode("latin-1"), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, method: str, target: str, head: str, writer: asyncio.StreamWriter) -> None:
        url = urlsplit(target)
        query, (_, bucket, *rest) = parse_qs(url.query), url.path.split("/", 2)
        key = unquote(rest[0]) if rest else ""
        kind = "LIST" if "list-type" in query else method
        self.requests[kind] = self.requests.get(kind, 0) + 1
        file = self.folder / key
        if kind == "LIST":
            body = self._list(bucket, query).encode()
            writer.write(
                _head(200, {"Content-Type": "application/xml", "Content-Length": len(body)})
            )
            writer.write(body)
        elif not key:
            writer.write(_head(200, {"Content-Length": 0}))
        elif not file.is_file():
            writer.write(_head(404, {"Content-Length": 0}))
        else:
            self._send(method, file, head, writer)

    def _send(self, method: str, file: Path, head: str, writer: asyncio.StreamWriter) -> None:
        size, status = _size(file), 200
        first, last = 0, size - 1
        headers = {"Accept-Ranges": "bytes", "ETag": '"0"',
                   "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}  # fmt: skip
        if wanted := re.search(r"\r\nrange: bytes=(\d*)-(\d*)", head, re.IGNORECASE):
            status = 206
            if wanted[1]:
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            else:
                first = max(size - int(wanted[2]), 0)
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        writer.write(_head(status, headers | {"Content-Length": last + 1 - first}))
        if method == "GET":
            with open(file, "rb") as content:
                content.seek(first)
                writer.write(content.read(last + 1 - first))
            self.sent += last + 1 - first

    def _list(self, bucket: str, query: dict[str, list[str]]) -> str:
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        start = self.folder / prefix
        files = [start] if start.is_file() else sorted(f for f in start.rglob("*") if f.is_file())
        keys = [str(f.relative_to(self.folder)) for f in files]
        keys = [key for key in keys if key > after and key.startswith(prefix)]
        shown, most = [], int(query.get("max-keys", [PAGE])[0])
        for key in keys[:most]:
            size = _size(self.folder / key)
            shown.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z"
                f"</LastModified><ETag>0</ETag><Size>{size}</Size></Contents>"
            )
        more = len(keys) > most
        token = f"<NextContinuationToken>{keys[most - 1]}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult>'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(shown)}"
            f"</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{''.join(shown)}</ListBucketResult>"
        )


@functools.cache
def _size(file: Path) -> int:
    return file.stat().st_size


def _head(status: int, headers: dict[str, object]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} -\r\n{lines}\r\n".encode()


async def _main(folder: Path, milliseconds: float) -> None:
    bucket = Bucket(folder, milliseconds / 1000)
    server = await asyncio.start_server(bucket.serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2])))
