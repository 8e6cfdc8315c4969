"""Weights by name: found, fetched over HTTP on loopback, and refused when they are not the ones."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from schemas import weights
from schemas.weights import PROFILES, TABLE, WeightsError, fetch, locate

CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real HTTP server with one file."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "vgg19.pth").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/vgg19.pth"
        running.shutdown()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def name_it(monkeypatch: pytest.MonkeyPatch, url: str, prefix: str) -> None:
    entry = replace(TABLE["vgg19"], url=url, sha256_prefix=prefix)
    monkeypatch.setitem(weights.TABLE, "vgg19", entry)


def test_fetched_weights_are_located(
    server: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    name_it(monkeypatch, server, digest[:8])
    with pytest.raises(WeightsError, match="fetch vgg19"):
        locate("vgg19", "vgg")
    fetch("vgg19")
    located = locate("vgg19", "vgg")
    assert located.path == folder / "vgg19" / "vgg19.pth"
    assert located.path.read_bytes() == CONTENT and located.identity.startswith("vgg19@")


@pytest.mark.parametrize(("path", "prefix"), [("", "00000000"), ("/gone", "")])
def test_wrong_or_missing_files_are_refused_and_leave_nothing(
    server: str, folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, prefix: str
) -> None:
    name_it(monkeypatch, server + path, prefix)
    with pytest.raises(WeightsError, match="could not be fetched from http") as caught:
        fetch("vgg19")
    assert "\n" not in str(caught.value)
    assert not [p for p in folder.rglob("*") if p.is_file()]


def test_every_profile_names_weights_of_the_right_kind() -> None:
    for profile in PROFILES.values():
        for kind, name in profile.items():
            assert TABLE[name].kind == kind
    assert all(TABLE[name].built_in for name in PROFILES["offline"].values())
    for entry in TABLE.values():
        assert entry.licence and entry.about
        assert entry.built_in or (entry.megabytes > 0 and bool(entry.repository) != bool(entry.url))


def test_own_files_are_known_by_their_content(tmp_path: Path) -> None:
    for name, content in (("a.pth", b"1"), ("b.pth", b"2")):
        (tmp_path / name).write_bytes(content)
    first, second = (locate(str(tmp_path / n), "sr").identity for n in ("a.pth", "b.pth"))
    assert first.startswith("a@") and first[2:] != second[2:]
