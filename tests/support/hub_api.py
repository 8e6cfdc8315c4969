"""The part of a model hub's API that uploads and listings use, as `huggingface_hub` calls it."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KIND = r"(?P<kind>models|datasets)"
API = re.compile(rf"/api/{KIND}/(?P<name>[^/]+/[^/]+)(?:/(?P<what>[a-z-]+)(?:/(?P<rest>.*))?)?")
BATCH = re.compile(r"/(?P<prefix>datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
LARGE = 100_000  # bytes from which a file goes to the large-file storage

Answer = tuple[int, Any, dict[str, str]]


@dataclass
class Repository:
    """A repository: its files and commits. large: names of files in the large-file storage."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    commits: list[list[str]] = field(default_factory=list)  # names that each changed

    @property
    def head(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


@dataclass
class Hub:
    """Repositories by kind and name, such as `datasets/owner/name`.

    stored: objects by sha256. refuse: a status that the next commits are answered with.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    token: str | None = None  # that writing requires
    refuse: list[int] = field(default_factory=list)

    def content(self, path: str) -> bytes | None:
        """A file by its address below the host: [datasets/]owner/name/resolve/revision/file."""
        found = re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if not found:
            return None
        repository = self.repositories.get(f"{(found[1] or 'models/')}{found[2]}")
        return repository.files.get(unquote(found[3])) if repository else None

    def answer(
        self, method: str, address: str, body: bytes, token: str | None, host: str
    ) -> Answer:
        """Status, JSON and headers of a call."""
        url = urlsplit(address)
        path, query = unquote(url.path), parse_qs(url.query)
        may_write = self.token is None or token == f"Bearer {self.token}"
        if method == "POST" and not may_write and "paths-info" not in path:
            return 401, {"error": "Invalid credentials"}, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['type']}s/{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this repo"}, {}
            repository = Repository(asked.get("visibility") == "private")
            repository.files[".gitattributes"] = b"*.parquet filter=lfs\n"
            self.repositories[name] = repository
            return 200, {"url": f"{host}/{name.removeprefix('models/')}"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path.startswith("/store/"):
            return self._store(path.removeprefix("/store/"), body)
        if BATCH.fullmatch(path):
            return 200, self._batch(json.loads(body), host), {}
        if found := API.fullmatch(path):
            key = f"{found['kind']}/{found['name']}"
            if key not in self.repositories:
                return 404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"}
            address = f"{host}/{key.removeprefix('models/')}"
            return self._api(self.repositories[key], found, body, query, address)
        return 404, {"error": "no such page"}, {}

    def _store(self, sha256: str, body: bytes) -> Answer:
        assert hashlib.sha256(body).hexdigest() == sha256
        self.stored[sha256] = body
        return 200, {}, {}

    def _batch(self, asked: dict[str, Any], host: str) -> dict[str, Any]:
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | (
                {}
                if one["oid"] in self.stored
                else {"actions": {"upload": {"href": f"{host}/store/{one['oid']}"}}}
            )
            for one in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _api(
        self,
        repository: Repository,
        found: re.Match[str],
        body: bytes,
        query: dict[str, list[str]],
        address: str,
    ) -> Answer:
        what, rest = found["what"], found["rest"] or ""
        if what in (None, "revision"):
            about = {"id": found["name"], "sha": repository.head, "private": repository.private}
            return 200, about | {"siblings": [], "tags": [], "downloads": 0, "likes": 0}, {}
        if what == "tree":
            below = rest.partition("/")[2]
            return (
                200,
                _tree(repository, below, query.get("recursive", [""])[0].lower() == "true"),
                {},
            )
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get(
                "paths", []
            )
            every = _tree(repository, "", True)
            return 200, [each for each in every if each["path"] in asked], {}
        if what == "preupload":
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}, {}
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            return self._commit(repository, lines, address)
        return 404, {"error": f"no {what}"}, {}

    def _commit(self, repository: Repository, lines: list[dict[str, Any]], address: str) -> Answer:
        if self.refuse:
            return self.refuse.pop(0), {"error": "try again"}, {}
        header, *operations = lines
        if header["value"].get("parentCommit") not in (None, repository.head):
            return 412, {"error": "A commit has happened since"}, {}
        for line in operations:
            value = line["value"]
            if line["key"] == "deletedFile":
                del repository.files[value["path"]]
                continue
            if line["key"] == "lfsFile":
                repository.files[value["path"]] = self.stored[value["oid"]]
                repository.large.add(value["path"])
            else:
                repository.files[value["path"]] = base64.b64decode(value["content"])
                repository.large.discard(value["path"])
        repository.commits.append([line["value"]["path"] for line in operations])
        url = f"{address}/commit/{repository.head}"
        return 200, {"commitUrl": url, "commitOid": repository.head}, {}


def git_id(content: bytes) -> str:
    """The id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(repository: Repository, below: str, recursive: bool) -> list[dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for name, content in sorted(repository.files.items()):
        if below and not name.startswith(f"{below}/"):
            continue
        rest = name.removeprefix(f"{below}/" if below else "")
        parents = rest.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            path = "/".join(filter(None, [below, *parents[:depth]]))
            if recursive or depth == 1:
                entries[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        if recursive or not parents:
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
            if name in repository.large:
                sha256 = hashlib.sha256(content).hexdigest()
                entry |= {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}}
                entry["oid"] = git_id(f"version\noid sha256:{sha256}\n".encode())
            else:
                entry["oid"] = git_id(content)
            entries[name] = entry
    return list(entries.values())
