"""One file over HTTP: carried on where it was cut, compared with its digest, named when whole."""

import json
import logging
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from safetensors import SafetensorError, safe_open

from lasr.cli import progress
from lasr.errors import UserError
from lasr.files import fsync_folder, write_bytes
from lasr.weights.digests import sha256

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ATTEMPTS = 5  # in a row, without one new byte
FIRST_PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
LARGE = 10_000_000  # bytes: what is smaller shows no progress


class Passing(Exception):
    """A fault that another attempt may not meet, such as a server that is too busy."""


PASSING = (
    Passing,
    httpx.TimeoutException,
    httpx.NetworkError,
    httpx.ProtocolError,
    httpx.ProxyError,
)


def seconds_to_wait() -> float:
    """Without a byte, after which a server counts as gone: $HF_HUB_DOWNLOAD_TIMEOUT, or 10.

    Raises UserError: not a number.
    """
    text = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"HF_HUB_DOWNLOAD_TIMEOUT={text}: not a number of seconds") from None


def download(url: str, target: Path, expected: str, headers: dict[str, str]) -> str:
    """Bring `url` to `part_of(target)`, whole and compared; returns its sha256.

    What came stays when the connection is cut or the process killed, and the next call asks for
    the rest alone. expected: the sha256, or its first digits, or "". Raises UserError: not there,
    not allowed, not reached in ATTEMPTS, or not the published file.
    """
    part = part_of(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    if not (expected or _version(part).is_file()):
        discard(target)  # nothing would say that the rest belongs to it
    # Proxies come from the environment; the token goes to no other host that one is sent on to.
    with httpx.Client(timeout=seconds_to_wait(), follow_redirects=True, headers=headers) as client:
        try:
            with_retries(url, lambda: _carry_on(client, url, target), lambda: _size(part))
        except (httpx.InvalidURL, httpx.RequestError) as error:
            raise UserError(f"{url}: {error}") from error
    digest = sha256(part)
    problem = defect(part, target.suffix)
    if not digest.startswith(expected):
        problem = f"its sha256 begins {digest[:12]}, the published one {expected[:12]}"
    if problem:
        discard(target)
        raise UserError(f"{url}: not the right file: {problem}; what came was removed")
    return digest


def with_retries(
    what: str, attempt: Callable[[], Result], came: Callable[[], int] = lambda: 0
) -> Result:
    """Call `attempt` until it raises no Passing; gives up after ATTEMPTS that brought nothing.

    came: how many bytes are here. Raises UserError.
    """
    failed, before = 0, came()
    while True:
        try:
            return attempt()
        except PASSING as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, httpx.TimeoutException):
                reason = f"no answer for {seconds_to_wait():g} s, see HF_HUB_DOWNLOAD_TIMEOUT"
        failed = 1 if came() > before else failed + 1
        before = came()
        if failed >= ATTEMPTS:
            raise UserError(
                f"{what}: given up after {ATTEMPTS} attempts ({reason}); check the connection and"
                " run the same command again: what came is kept"
            )
        logger.warning("%s: %s; trying again", what, reason)
        time.sleep(FIRST_PAUSE * 2 ** (failed - 1))


def _carry_on(client: httpx.Client, url: str, target: Path) -> None:
    """Ask for what is missing and append it. Raises UserError, or what httpx and PASSING have."""
    part = part_of(target)
    start, version = _size(part), _version(part)
    headers = {"Accept-Encoding": "identity"}  # bytes as they are stored, to count and to append
    if start:
        headers["Range"] = f"bytes={start}-"
        if version.is_file():
            # All of it comes if the file is another one by now (RFC 9110, 13.1.5).
            headers["If-Range"] = version.read_text()
    with client.stream("GET", url, headers=headers) as answer:
        status = answer.status_code
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if answer.headers.get("Content-Range") == f"bytes */{start}":
                return  # killed between the last byte and the name: it is whole
            part.unlink()
            raise Passing("what came before is longer than the file")
        if status in (408, 429) or status >= 500:
            raise Passing(f"HTTP {status} {answer.reason_phrase}")
        if status >= 400:
            raise UserError(f"{url}: HTTP {status} {answer.reason_phrase}")
        if status != httpx.codes.PARTIAL_CONTENT:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise Passing("another part of the file came than was asked for")
        version.unlink(missing_ok=True)
        if strong := _strong_version(answer.headers):
            write_bytes(version, strong.encode())
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            open(part, "ab" if start else "wb") as file,
            progress(
                total, target.name, "B", start, quiet=(total or LARGE) < LARGE, scaled=True
            ) as bar,
        ):
            for chunk in answer.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _strong_version(headers: httpx.Headers) -> str:
    """What may stand in If-Range: an ETag that is not weak, else the time of the last change."""
    etag: str = headers.get("ETag", "W/")
    changed: str = headers.get("Last-Modified", "")
    return changed if etag.startswith("W/") else etag


def part_of(target: Path) -> Path:
    """Where a file stands while it comes."""
    return target.with_name(f".{target.name}.part")


def _version(part: Path) -> Path:
    return part.with_suffix(".version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def discard(target: Path) -> None:
    """Remove what came of `target` until now."""
    part_of(target).unlink(missing_ok=True)
    _version(part_of(target)).unlink(missing_ok=True)


def name_it(target: Path) -> None:
    """Give what `download` brought its name."""
    os.replace(part_of(target), target)
    discard(target)
    fsync_folder(target.parent)


def defect(path: Path, suffix: str) -> str:
    """What is wrong with a weights file by its form alone, "" where nothing is. Runs nothing of it.

    A truncated safetensors or zip is noticed, and a page of text that a proxy sent instead. Old
    .pth files are plain pickles, which only a digest judges.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    try:
        if suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif suffix == ".safetensors":
            with safe_open(path, framework="numpy"):
                pass
        elif suffix in (".pth", ".pt", ".ckpt") and start != b"\x80\x02":
            zipfile.ZipFile(path).close()  # its directory stands at the end
    except (ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return f"truncated, or no {suffix} file ({error})"
    return ""
