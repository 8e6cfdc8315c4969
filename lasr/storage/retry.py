"""Requests that fail: which errors pass by themselves, and how long to try again.

pyarrow makes three attempts of its own within seconds. What fails after them is tried again here
with growing pauses, until storage has answered nothing for the whole of `patience`: the clock of an
outage is shared by all threads, so that many of them do not wait one after the other.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from lasr.storage.filesystem import StorageError, reason

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST, LONGEST = 0.5, 20.0  # seconds between two attempts
_QUIET = 5.0  # seconds of an outage before a warning
# Words of pyarrow (AWS, Google) and status codes of HTTP that no second attempt changes.
_LASTING = re.compile(
    r"ACCESS_DENIED|NO_SUCH_(BUCKET|KEY|UPLOAD)|RESOURCE_NOT_FOUND|INVALID_ACCESS_KEY_ID"
    r"|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|MISSING_AUTHENTICATION_TOKEN"
    r"|UNRECOGNIZED_CLIENT|INVALID_SIGNATURE|EXPIRED_?TOKEN|PERMISSION_DENIED|UNAUTHENTICATED"
    r"|\bNOT_FOUND|Bucket '.*' not found|HTTP status (301|40[0134]|416)",
    re.IGNORECASE,
)


_stopped = threading.Event()


def give_up() -> None:
    """End all waiting for storage in this process: it is about to stop."""
    _stopped.set()


def may_wait() -> None:
    """Take back `give_up`."""
    _stopped.clear()


@dataclass
class Patience:
    """How long requests to one storage are tried again. Thread-safe.

    seconds: without any answer from the storage, or of one request without success.
    """

    seconds: float = 300.0
    since: float | None = field(default=None)  # of an outage, by the monotonic clock
    warned: bool = False
    retries: int = 0

    def keep_trying(self, address: object, action: Callable[[], T]) -> T:
        """The result of `action`. Raises StorageError: one line that names the address."""
        began: float | None = None
        pause = FIRST
        while True:
            try:
                result = action()
            except Exception as error:
                if not is_of_storage(error):
                    raise
                now = time.monotonic()
                began = now if began is None else began
                self.since = now if self.since is None else self.since
                waited = now - min(began, self.since)
                if _stopped.is_set() or not is_passing(error) or waited >= self.seconds:
                    raise unreachable(address, error, waited) from error
                self._warn(address, error, waited)
            else:
                self.since, self.warned = None, False
                return result
            _stopped.wait(min(pause * (0.5 + random.random()), max(self.seconds - waited, 0.01)))
            pause = min(2 * pause, LONGEST)

    def _warn(self, address: object, error: Exception, waited: float) -> None:
        self.retries += 1
        if waited >= _QUIET and not self.warned:
            self.warned = True
            log.warning(
                "%s: cannot be read (%s); trying again for up to %.0f s",
                *(address, reason(error), self.seconds),
            )


def is_of_storage(error: Exception) -> bool:
    """Whether an error comes from a file system or its connection, and not from a mistake of ours.

    Libraries of fsspec raise errors of the HTTP client that they use.
    """
    packages = {"httpx", "httpcore", "requests", "urllib3", "aiohttp", "botocore", "google"}
    return isinstance(error, OSError | TimeoutError) or any(
        kind.__module__.partition(".")[0] in packages for kind in type(error).__mro__
    )


def is_passing(error: Exception) -> bool:
    """Whether a request that failed may succeed if it is made again."""
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return False
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in (408, 425, 429) or status >= 500
    return not _LASTING.search(str(error))


def unreachable(address: object, error: Exception, waited: float = 0) -> StorageError:
    """One line: what cannot be read, why, and what to do."""
    why, text = reason(error), f"{type(error).__name__} {error}"
    fix = "check the address, the credentials and the endpoint"
    if is_passing(error):
        for_long = f" for {waited:.0f} s" if waited >= 1 else ""
        return StorageError(
            f"{address}: cannot be read{for_long} ({why})",
            "check the connection and the endpoint, then run the same command again",
        )
    if "OfflineMode" in text:
        fix = "unset HF_HUB_OFFLINE"
    elif re.search("BUCKET|Bucket '", text):
        fix = "check the bucket's name and the endpoint (AWS_ENDPOINT_URL)"
    elif str(address).startswith("hf://"):
        fix = "check the name; for a private or gated repository log in with `hf auth login`"
    elif re.search("ACCESS_KEY|SIGNATURE|TOKEN|UNAUTHENTICATED|EXPIRED", text, re.IGNORECASE):
        fix = "check the credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif re.search("ACCESS_DENIED|PERMISSION|status 403", text, re.IGNORECASE):
        fix = "ask for the right to list and read there, or check which credentials are in use"
    elif isinstance(error, FileNotFoundError) or "NOT_FOUND" in text or "NO_SUCH_KEY" in text:
        fix = "it is gone: check the address, or build the manifest again"
    return StorageError(f"{address}: cannot be read ({why})", fix)
