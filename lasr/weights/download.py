"""Download one file over HTTP: resume a partial download, retry, and verify before renaming."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx

from lasr.cli import progress
from lasr.errors import UserError
from lasr.files import fsync_folder, replace_file, write_bytes
from lasr.weights.digests import format_problem, sha256

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ATTEMPTS = 5  # in a row without a new byte
FIRST_PAUSE = 1.0  # seconds before the second attempt; doubles with each further one
LARGE = 10_000_000  # bytes; smaller files show no progress bar


class TransientError(Exception):
    """A failure that the next attempt may not meet, such as an overloaded server."""


TRANSIENT = (
    TransientError,
    httpx.TimeoutException,
    httpx.NetworkError,
    httpx.ProtocolError,
    httpx.ProxyError,
)


def read_timeout() -> float:
    """Seconds without a byte until a server counts as gone: $HF_HUB_DOWNLOAD_TIMEOUT, or 10.

    Raises UserError: not a number.
    """
    text = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"HF_HUB_DOWNLOAD_TIMEOUT={text}: not a number of seconds", "set it to such as 30"
        ) from None


def download(url: str, target: Path, expected: str, headers: dict[str, str], size: int = 0) -> str:
    """Download `url` to `partial_path(target)` and verify it; returns its sha256.

    The partial file survives a lost connection or a killed process, and the next call requests only
    the rest. expected: the sha256, its first digits, or "". size: in bytes, 0 if unknown; a file
    that is announced with another one is refused before it is transferred.

    Raises:
        UserError: not found, not allowed, no success after ATTEMPTS, or another file than expected.
    """
    partial = partial_path(target)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if not (expected or _version_path(partial).is_file()):
        discard(target)  # nothing would tell whether the rest belongs to it
    # Proxies come from the environment. On a redirect to another host httpx drops the token.
    with httpx.Client(timeout=read_timeout(), follow_redirects=True, headers=headers) as client:
        try:
            with_retries(url, lambda: _resume(client, url, target, size), lambda: _size(partial))
        except (httpx.InvalidURL, httpx.RequestError) as error:
            raise UserError(f"{url}: {error}", "check the address") from error
    digest = sha256(partial)
    problem = format_problem(partial, target.suffix)
    if size and _size(partial) != size:
        problem = _wrong_size(_size(partial), size)
    if not digest.startswith(expected):
        problem = f"its sha256 begins {digest[:12]}, the published one {expected[:12]}"
    if problem:
        discard(target)
        raise UserError(
            f"{url}: not the right file: {problem}", "it was removed; check the address or mirror"
        )
    return digest


def with_retries(
    what: str, attempt: Callable[[], Result], received: Callable[[], int] = lambda: 0
) -> Result:
    """Call `attempt` again after each transient error, up to ATTEMPTS times without a new byte.

    received: the number of bytes on disk. Raises UserError after the last attempt.
    """
    failed, before = 0, received()
    while True:
        try:
            return attempt()
        except TRANSIENT as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, httpx.TimeoutException):
                reason = f"no answer for {read_timeout():g} s, see HF_HUB_DOWNLOAD_TIMEOUT"
        failed = 1 if received() > before else failed + 1
        before = received()
        if failed >= ATTEMPTS:
            raise UserError(
                f"{what}: no success after {ATTEMPTS} attempts ({reason})",
                "check the connection and run the same command again, which resumes the download",
            )
        logger.warning("%s: %s; trying again", what, reason)
        time.sleep(FIRST_PAUSE * 2 ** (failed - 1))


def _resume(client: httpx.Client, url: str, target: Path, size: int) -> None:
    """Request the missing bytes and append them. Raises UserError, or an error of httpx."""
    partial = partial_path(target)
    start, version = _size(partial), _version_path(partial)
    headers = {"Accept-Encoding": "identity"}  # stored bytes, to count and to append
    if start:
        headers["Range"] = f"bytes={start}-"
        if version.is_file():  # the whole file is sent if it has changed (RFC 9110, 13.1.5)
            headers["If-Range"] = version.read_text("utf-8")
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return  # complete: the process was killed just before the rename
            partial.unlink()
            raise TransientError("the partial file is longer than the published one")
        _check_status(url, response)
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            partial.unlink()
            raise TransientError("the server sent another range than requested")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if size and total not in (None, size):
            discard(target)
            raise UserError(
                f"{url}: not the right file: {_wrong_size(total or 0, size)}",
                "it was not downloaded; check the address or mirror",
            )
        version.unlink(missing_ok=True)
        if validator := _strong_validator(response.headers):
            write_bytes(version, validator.encode())
        _append(response, partial, start, total, target.name)


def _check_status(url: str, response: httpx.Response) -> None:
    status = f"HTTP {response.status_code} {response.reason_phrase}"
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise TransientError(status)
    if response.status_code >= 400:
        raise UserError(f"{url}: {status}", "check the address or mirror")


def _wrong_size(found: int, size: int) -> str:
    return f"it has {found:,} bytes, the published one {size:,}"


def _append(
    response: httpx.Response, partial: Path, start: int, total: int | None, name: str
) -> None:
    """Write the response's body to `partial` from byte `start` on, with a progress bar."""
    quiet = (total or LARGE) < LARGE
    with (
        partial.open("ab" if start else "wb") as file,
        progress(total, name, "B", start, quiet=quiet, scaled=True) as bar,
    ):
        for chunk in response.iter_raw():
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _strong_validator(headers: httpx.Headers) -> str:
    """A value for If-Range: the ETag unless it is weak, else the time of the last change."""
    etag: str = headers.get("ETag", "W/")
    changed: str = headers.get("Last-Modified", "")
    return changed if etag.startswith("W/") else etag


def partial_path(target: Path) -> Path:
    """The file that a download of `target` writes to."""
    return target.with_name(f".{target.name}.part")


def _version_path(partial: Path) -> Path:
    return partial.with_suffix(".version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def discard(target: Path) -> None:
    """Remove a partial download of `target`."""
    partial_path(target).unlink(missing_ok=True)
    _version_path(partial_path(target)).unlink(missing_ok=True)


def finish(target: Path) -> None:
    """Rename a complete, verified download to `target`."""
    replace_file(partial_path(target), target, lambda path: False)  # nothing may be there
    discard(target)
    fsync_folder(target.parent)
