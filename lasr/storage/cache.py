"""Ranges of bytes of remote files on a local disk: bounded, checked, shared by processes.

Each range is a file of its own, named by what it holds, with its digest in front. Files appear
whole, by a rename, so a kill leaves at most a temporary file, which a later process removes. The
digest is compared at each use: a damaged file is fetched again. The least recently used go first
when the bound is reached; a process that is reading one has its bytes in memory already.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from lasr.errors import UserError, no_space, one_line
from lasr.marks import KEY
from lasr.ownership import check_folder, is_ours, refused

log = logging.getLogger(__name__)

MARK = "cache.json"  # says that the folder is ours
_HEAD = b"la-sr range "  # of a file; 64 hex digits and a new line follow
_SUFFIX, _TEMPORARY, _LOCK = ".range", ".tmp", ".lock"
_OF_PROCESS = re.compile(r"\.[0-9a-f]{40}\.[0-9a-f]{8}\.tmp|[0-9a-f]{40}\.lock")
_ABANDONED = 3600  # seconds after which a temporary file is of a process that was killed
_START = len(_HEAD) + 65


def default_folder() -> Path:
    """`la-sr/ranges` in the user's folder of caches."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111
    return Path(base) / "la-sr" / "ranges"


class RangeCache:
    """A folder of ranges, at most `limit` bytes of them, and one range more for each thread.

    Raises UserError: the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: Path, limit: int, inputs: Iterable[object] = ()):
        self.folder, self.limit = folder, limit
        self.is_full = False  # the disk: ranges then are not stored
        self._lock = threading.Lock()
        check_folder(folder, inputs, flag="--cache")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._claim()
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror or one_line(error)})",
                "choose another --cache",
            ) from error

    def _claim(self) -> None:
        mark = self.folder / MARK
        if os.path.lexists(mark):
            if not is_ours(mark):
                raise refused(mark, "was not written by LA-SR", "--cache")
            return
        others = [name for name in os.listdir(self.folder) if not name.startswith(f".{MARK}")]
        if others and not is_ours(mark):  # another process may have written it meanwhile
            raise refused(self.folder, f"holds {min(others)} and no cache of LA-SR", "--cache")
        temporary = self.folder / f".{MARK}.{uuid.uuid4().hex[:8]}{_TEMPORARY}"
        about = "parts of manifests in object storage; this folder may be deleted at any time"
        temporary.write_bytes((json.dumps({KEY: about}) + "\n").encode())
        os.replace(temporary, mark)

    def path(self, key: str) -> Path:
        """The file of a range."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}{_SUFFIX}"

    def get(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes that `key` stands for, from the disk or by `fetch`, whose errors pass through.

        Of several threads and processes that want the same bytes, one fetches them.
        """
        path = self.path(key)
        found = self._read(path)
        if found is None:
            with self._fetching(path):
                found = self._read(path)
                if found is None:
                    found = fetch()
                    self._write(path, found)
        return found

    def has(self, key: str) -> bool:
        """Whether a range is on the disk; its bytes are not looked at."""
        return self.path(key).exists()

    def forget(self, key: str) -> None:
        """Remove a range, so that it is fetched again."""
        with contextlib.suppress(OSError):
            self.path(key).unlink()

    def _read(self, path: Path) -> bytes | None:
        """The bytes of a file, None if it is missing or damaged; notes that it was used."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s: cannot be read (%s), fetched again", path, one_line(error, 100))
            return None
        digest = hashlib.sha256(memoryview(content)[_START:]).hexdigest().encode()
        if content[:_START] != _HEAD + digest + b"\n":
            log.warning("%s: damaged in the cache, fetched again", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content[_START:]

    @contextlib.contextmanager
    def _fetching(self, path: Path) -> Iterator[None]:
        lock = path.with_suffix(_LOCK)
        try:
            held = FileLock(lock, poll_interval=0.01)
            held.acquire()
        except (OSError, NotImplementedError):  # no room for a lock: two may fetch the same
            yield
            return
        try:
            yield
        finally:
            # One that waits for the removed file fetches a second time at worst.
            with contextlib.suppress(OSError):
                lock.unlink()
            held.release()

    def _write(self, path: Path, content: bytes) -> None:
        if self.is_full:
            return
        head = _HEAD + hashlib.sha256(content).hexdigest().encode() + b"\n"
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
        try:
            self._make_space(len(head) + len(content))
            with open(temporary, "wb") as file:
                file.write(head)
                file.write(content)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            with self._lock:
                is_known, self.is_full = self.is_full, True
            if is_known:  # another thread met it
                return
            what = "the disk is full" if no_space(error) else one_line(error, 100)
            log.warning(
                "%s: cannot be written (%s); nothing more is cached there, and row groups are"
                " fetched again when they are needed again",
                *(self.folder, what),
            )

    def _make_space(self, size: int) -> None:
        """Remove the least recently used files until `size` more bytes fit into the bound."""
        files: list[tuple[float, int, str]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process has removed it
                    if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                        state = entry.stat(follow_symlinks=False)
                        files.append((state.st_mtime, state.st_size, entry.path))
                    elif _OF_PROCESS.fullmatch(entry.name) and _is_old(entry):
                        os.unlink(entry.path)  # noqa: PTH108
        excess = sum(each for _, each, _ in files) + size - self.limit
        for _, each, name in sorted(files):
            if excess <= 0:
                break
            if _is_range(name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)  # noqa: PTH108
                excess -= each


def _is_old(entry: os.DirEntry[str]) -> bool:
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED


def _is_range(name: str) -> bool:
    """Whether a file was written by a cache; others in its folder stay."""
    try:
        with open(name, "rb") as file:
            head = file.read(len(_HEAD))
    except OSError:
        return False
    return head in (_HEAD, b"")
