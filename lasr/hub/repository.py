"""Bring a repository on the Hub up to date, and replace nothing in it that is not ours.

The file `lasr.json` in a repository lists what was uploaded, with digests. What is on the Hub now
is ours if it has the digest in that list, or that of the file to upload. A README.md that somebody
edited on the Hub stays as it is.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lasr
from lasr.errors import UserError, one_line
from lasr.marks import KEY
from lasr.terminal.summary import counted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["dataset", "model"]
RECORD, CARD = "lasr.json", "README.md"
_HUBS_OWN = (".gitattributes",)  # a new repository has it
_FILES = 64  # of a commit
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Digest:
    """Of a file's content: sha256, and the id that git gives it, both hex."""

    sha256: str
    git: str


@dataclass
class Plan:
    """What an upload does. Names are paths in the repository.

    head: the commit that was looked at; None: there is no repository yet.
    """

    repository: str
    kind: Kind
    files: Mapping[str, Path | bytes]
    digests: dict[str, Digest]
    head: str | None = None
    is_private: bool = False
    upload: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)  # stay as they are

    def __str__(self) -> str:
        """The text of --dry-run."""
        exists = "exists" if self.head else "new"
        privacy = "" if self.head else ", private" if self.is_private else ", public"
        lines = [f"repository: {self.kind} {self.repository} ({exists}{privacy})"]
        for title, names in (("upload", self.upload), ("same", self.same)):
            total = sum(size(self.files[name]) for name in names if name in self.files) / 1e6
            if names:
                count = counted(len(names), "file")
                lines.append(f"{title + ':':11} {count}, {total:.1f} MB: {_few(names)}")
        if self.remove:
            lines.append(f"remove:     {counted(len(self.remove), 'file')} of an earlier push")
        if self.edited:
            lines.append(f"left as is: {', '.join(self.edited)}, edited on the Hub")
        return "\n".join(lines)


def size(content: Path | bytes) -> int:
    """Bytes of a file."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def check_name(repository: str) -> None:
    """Raise UserError unless this is a name such as owner/name."""
    if "/" not in repository:
        raise UserError(f"{repository}: names no owner", "give owner/name")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII) or len(repository) > 96:
        raise UserError(f"{repository}: no name of a repository", "give owner/name")


def look(repository: str, kind: Kind, files: Mapping[str, Path | bytes], private: bool) -> Plan:
    """Compare files with a repository; changes nothing.

    files: what it is to hold, by path. Raises UserError: the Hub cannot be reached, or the
    repository holds something that is not ours.
    """
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import RepositoryNotFoundError

    plan = Plan(repository, kind, files, {name: digest(files[name]) for name in files})
    plan.is_private = private
    api = _api()
    with reported(repository):
        try:
            head = api.repo_info(repository, repo_type=kind).sha
        except RepositoryNotFoundError:
            plan.upload = list(files)
            return plan
        plan.head = head
        tree = api.list_repo_tree(repository, repo_type=kind, recursive=True, revision=head)
        there = {
            file.path: (file.lfs.sha256 if file.lfs else "", file.blob_id)
            for file in tree
            if isinstance(file, RepoFile)
        }
        known = _read_record(api, plan) if RECORD in there else {}
    _compare(plan, there, known)
    return plan


def _compare(plan: Plan, there: Mapping[str, tuple[str, str]], known: Mapping[str, Digest]) -> None:
    def is_as(name: str, expected: Digest | None) -> bool:
        sha256, blob = there[name]
        return expected is not None and (
            sha256 == expected.sha256 if sha256 else blob == expected.git
        )

    for name in plan.files:
        if name not in there:
            plan.upload.append(name)
        elif is_as(name, plan.digests[name]):
            plan.same.append(name)
        elif is_as(name, known.get(name)):
            plan.upload.append(name)
        elif name == CARD and CARD in known:
            plan.edited.append(name)
        else:
            raise _foreign(plan, name)
    for name in there.keys() - plan.files.keys() - {RECORD, *_HUBS_OWN}:
        if is_as(name, known.get(name)):
            plan.remove.append(name)
        elif name in known:  # it was changed since
            plan.edited.append(name)
        elif not known:
            raise _foreign(plan, name)
    plan.remove.sort()


def _foreign(plan: Plan, name: str) -> UserError:
    return UserError(
        f"{plan.repository}: holds {name}, which `lasr push` did not put there or which was changed"
        " since; nothing was changed",
        "push to another repository, or remove it there",
    )


def _read_record(api: "HfApi", plan: Plan) -> dict[str, Digest]:
    """What earlier pushes uploaded."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(
            plan.repository, RECORD, repo_type=plan.kind, revision=plan.head, local_dir=folder
        )
        try:
            content = json.loads(Path(path).read_bytes())
            if KEY not in content:
                raise ValueError
            return {name: Digest(*map(str, pair)) for name, pair in content["files"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _foreign(plan, RECORD) from error


def push(plan: Plan, message: str) -> str:
    """Upload what `look` found missing; returns the address.

    The record comes first, so that an upload that was interrupted is known as ours. Files that are
    there already are not sent again. Raises UserError.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not (sys.stderr and sys.stderr.isatty()):
        disable_progress_bars()
    api = _api()
    with reported(plan.repository):
        if plan.head is None:
            api.create_repo(
                plan.repository, repo_type=plan.kind, private=plan.is_private, exist_ok=False
            )
        head = plan.head or api.repo_info(plan.repository, repo_type=plan.kind).sha
        data = [name for name in plan.upload if name != CARD]
        groups = [data[at : at + _FILES] for at in range(0, len(data), _FILES)]
        last: list[Any] = [CommitOperationDelete(name) for name in plan.remove]
        last += _additions(plan, [name for name in plan.upload if name == CARD])
        operations = [*(_additions(plan, group) for group in groups), last]
        operations[0] = [CommitOperationAdd(RECORD, record(plan)), *operations[0]]
        for group in operations:
            if group:
                head = api.create_commit(
                    plan.repository, group, commit_message=message, repo_type=plan.kind,
                    parent_commit=head,
                ).oid  # fmt: skip
    prefix = "datasets/" if plan.kind == "dataset" else ""
    return f"{_endpoint()}/{prefix}{plan.repository}"


def _additions(plan: Plan, names: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    def content(name: str) -> str | bytes:
        found = plan.files[name]
        return found if isinstance(found, bytes) else str(found)

    return [CommitOperationAdd(name, content(name)) for name in names]


def record(plan: Plan) -> bytes:
    """The content of `lasr.json`."""
    files = {name: [each.sha256, each.git] for name, each in sorted(plan.digests.items())}
    return json.dumps({KEY: lasr.__version__, "files": files}, indent=1).encode() + b"\n"


def digest(content: Path | bytes) -> Digest:
    """Hash a file once, for both ids. Raises OSError."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size(content))
    for block in [content] if isinstance(content, bytes) else _blocks(content):
        sha256.update(block)
        git.update(block)
    return Digest(sha256.hexdigest(), git.hexdigest())


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), library_name=KEY, library_version=lasr.__version__)


@contextmanager
def reported(repository: str) -> Iterator[None]:
    """Turn errors of the Hub and of the network into one line."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        fix = {
            401: "log in with `hf auth login`, or set HF_TOKEN",
            403: "use a token that may write there",
            412: "somebody changed the repository meanwhile: run the command again",
        }.get(status, "run the command again, which continues")
        raise UserError(f"{repository}: the Hub answered {status}: {_about(error)}", fix) from error
    except Exception as error:
        # Its HTTP library has had several names, and it wraps some errors of uploads.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        is_network = isinstance(cause, OSError) or type(cause).__module__.startswith("httpx")
        if not is_network or isinstance(error, UserError):
            raise
        raise UserError(
            f"{repository}: the Hub cannot be reached ({one_line(error, 200)})",
            "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE; the command continues",
        ) from error


def _about(error: Any) -> str:
    return one_line(error.server_message or error, 200)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
