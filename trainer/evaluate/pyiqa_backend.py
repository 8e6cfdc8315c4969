"""Libraries that download what they miss are kept from it, and watched for the files they read."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_CONNECTING = frozenset(["urllib.Request", "socket.getaddrinfo", "socket.connect"])


class ConnectionRefused(Exception):
    """A library wanted to reach the network."""


@dataclass
class Watch:
    """What was seen: files opened below `folder`, in order, and what a connection was wanted to."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    refused: str = ""


_watch: Watch | None = None
_hooked = False


@contextmanager
def offline(folder: Path) -> Iterator[Watch]:
    """Refuse every connection of this process, and note the files below `folder` that are opened.

    By Python's audit events, so that it holds for urllib, requests, httpx and what comes next.
    A file that a C or Rust library opens by itself is not seen.
    """
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # cannot be taken off again; does nothing outside this context
        _hooked = True
    _watch = Watch(folder.resolve())
    try:
        yield _watch
    finally:
        _watch = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    watch = _watch
    if watch is None:
        return
    if event in _CONNECTING:
        watch.refused = watch.refused or str(arguments[0 if event != "socket.connect" else 1])
        raise ConnectionRefused(watch.refused)
    if event == "open" and isinstance(arguments[0], str | Path):
        path = Path(arguments[0]).absolute()
        if path.is_relative_to(watch.folder) and path not in watch.files:
            watch.files.append(path)
