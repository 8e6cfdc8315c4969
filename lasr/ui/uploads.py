"""Files that the page sends, and files that it may fetch: names, limits, and how long they stay."""

import os
import secrets
import shutil
import threading
from collections import OrderedDict
from pathlib import Path, PurePosixPath

from starlette.requests import Request

from lasr.errors import UserError, of_machine

KEPT = 24  # folders; each has a picture and what was made of it
NAME = 120  # bytes of a name


def clean(name: str) -> str:
    """The last part of a name, without control characters, short enough to be one."""
    last = PurePosixPath(name.replace("\\", "/")).name
    last = "".join(c for c in last if c.isprintable()).strip(". ")
    stem, suffix = os.path.splitext(last)  # noqa: PTH122
    room = NAME - len(os.fsencode(suffix[:16]))
    stem = os.fsencode(stem)[:room].decode(errors="ignore")
    return f"{stem}{suffix[:16]}" or "picture"


class Store:
    """Folders of files by a name that cannot be guessed; the oldest are deleted.

    Nothing else is ever sent to the page: `file` gives only files that were offered by `offer`.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: OrderedDict[str, dict[str, Path]] = OrderedDict()
        self._lock = threading.Lock()

    def new(self) -> Path:
        """A new folder; its name is the key of `offer` and `file`."""
        folder = self._folder / secrets.token_hex(16)
        folder.mkdir()
        with self._lock:
            self._files[folder.name] = {}
            while len(self._files) > KEPT:
                shutil.rmtree(self._folder / self._files.popitem(last=False)[0], True)
        return folder

    def drop(self, folder: Path) -> None:
        """Delete a folder."""
        with self._lock:
            self._files.pop(folder.name, None)
        shutil.rmtree(folder, ignore_errors=True)

    def offer(self, path: Path) -> str:
        """Let the page fetch a file of such a folder; returns the address."""
        with self._lock:
            self._files[path.parent.name][path.name] = path
        return f"/files/{path.parent.name}/{path.name}"

    def file(self, key: str, name: str) -> Path:
        """An offered file. Raises UserError: there is none, or not any more."""
        path = self._files.get(key, {}).get(name)
        if path is None:
            raise UserError("this file is not kept any more", "start again")
        return path


async def receive(request: Request, path: Path, most: int) -> None:
    """Write the body of a request to a file.

    Raises UserError: it is empty or over `most` bytes, or the disk is full.
    """
    size, fix = 0, "send a smaller file, or raise --max-pixels"
    try:
        with open(path, "xb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise UserError(f"{path.name}: over {most} bytes", fix)
                file.write(chunk)
    except OSError as error:
        raise of_machine(error, path.name) from error
    if not size:
        raise UserError(f"{path.name}: the file is empty", "choose another one")
