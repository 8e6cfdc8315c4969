"""Downloads over HTTP on loopback: interrupted, wrong, missing, slow, killed, in parallel."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from lasr.errors import UserError
from lasr.weights import download, fetch
from lasr.weights.__main__ import main
from lasr.weights.digests import read_sums
from lasr.weights.locate import found, locate
from lasr.weights.registry import TABLE, Copy, File
from tests.support.hub import COMMIT, Fault, Host, serve
from tests.support.upstream import save_depth_anything
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network

ROOT = Path(__file__).parents[3]
NAME, FILE = "rrdb-psnr-x4", "RRDB.pth"
PATH = f"{NAME}/{FILE}"
DEPTH = "depth-anything-v2-base"  # without a published digest: the hub's own counts
HUB = TABLE[DEPTH].repository
LARGE = "model.safetensors"


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small networks in the real formats: a .pth of an RRDB, a folder of Depth Anything V2."""
    folder = tmp_path_factory.mktemp("formats")
    _, pth = save_network(untrained_rrdb(8, 1, 8), folder, "rrdb")
    save_depth_anything(folder / "depth")
    files = {f"{HUB}/{path.name}": path.read_bytes() for path in (folder / "depth").iterdir()}
    return {PATH: pth.read_bytes(), **files}


@pytest.fixture
def host(formats: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_DOWNLOAD_TIMEOUT", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.01)
    with serve() as host:
        host.files |= formats
        monkeypatch.setenv("LASR_MIRROR", host.address)
        monkeypatch.setenv("HF_ENDPOINT", host.address)
        yield host


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))  # no token of this machine
    return tmp_path / "weights"


def publish(monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    files = (File(FILE, digest),)
    monkeypatch.setitem(TABLE, NAME, replace(TABLE[NAME], files=files))


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["fetch", *argv]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: could not be fetched: ")
    return line


def visible(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )


def test_a_plain_file_comes_whole_is_recorded_and_located(
    host: Host, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", NAME]) == 0
    assert (folder / PATH).read_bytes() == host.files[PATH]
    assert visible(folder) == ["SHA256SUMS", PATH] and not list(folder.rglob("*.part"))
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, check=True, capture_output=True).stdout
    assert locate(NAME, "sr").path == folder / PATH
    asked = len(host.seen)
    assert main(["fetch", NAME, NAME]) == 0  # a second time nothing is asked for
    assert len(host.seen) == asked and f"already here: {NAME}" in capsys.readouterr().out


def test_a_hub_repository_comes_as_one_commit_with_the_hubs_digest(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setitem(TABLE, DEPTH, replace(TABLE[DEPTH], revision="main"))
    assert main(["fetch", DEPTH]) == 0
    text = capsys.readouterr().out
    assert f"{DEPTH}: 390 MB, licence CC-BY-NC-4.0: not for commercial use" in text
    assert sorted(visible(folder)) == sorted(
        ["SHA256SUMS", *(f"{DEPTH}/{file.name}" for file in TABLE[DEPTH].files)]
    )
    # The branch once; then the commit that it led to.
    revisions = [each.path.split("/")[4] for each in host.seen if "/resolve/" in each.path]
    assert revisions[:2] == ["main", "main"] and set(revisions[2:]) == {COMMIT}
    # The token for the hub, none for the host that it sends on to.
    assert {each.token for each in host.seen if "/resolve/" in each.path} == {"Bearer hf_secret"}
    assert [each.token for each in host.got(LARGE) if "/store/" in each.path] == [None]
    assert {each.path.rsplit("/", 1)[1] for each in host.seen} == {
        f.name for f in TABLE[DEPTH].files
    }
    assert locate(DEPTH, "depth").path == folder / DEPTH


@pytest.mark.parametrize("published", [True, False])
def test_a_lost_connection_is_resumed(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    content = host.files[PATH]
    if published:
        publish(monkeypatch, hashlib.sha256(content).hexdigest())
    half = len(content) // 2
    host.faults[FILE] = [Fault(cut=half), Fault(cut=1000)]
    assert main(["fetch", NAME]) == 0
    assert (folder / PATH).read_bytes() == content
    assert [each.range for each in host.got(FILE)] == [
        None, f"bytes={half}-", f"bytes={half + 1000}-"
    ]  # fmt: skip
    assert [each.status for each in host.got(FILE)] == [200, 206, 206]
    assert [each.sent for each in host.got(FILE)] == [half, 1000, len(content) - half - 1000]


def test_a_file_of_the_hub_is_resumed_too(host: Host, folder: Path) -> None:
    content = host.files[f"{HUB}/{LARGE}"]
    host.faults[LARGE] = [Fault(cut=3000)]
    assert main(["fetch", DEPTH]) == 0
    assert (folder / DEPTH / LARGE).read_bytes() == content
    sent = [(each.range, each.sent) for each in host.got(LARGE) if "/store/" in each.path]
    assert sent == [(None, 3000), ("bytes=3000-", len(content) - 3000)]


def test_without_ranges_or_after_a_change_the_whole_file_is_sent(host: Host, folder: Path) -> None:
    old, new = host.files[PATH], b"\x80\x02 another file, of an old form"
    host.ranges = False
    host.faults[FILE] = [Fault(cut=len(old) // 2)]
    assert main(["fetch", NAME]) == 0 and (folder / PATH).read_bytes() == old
    (folder / PATH).unlink()
    host.ranges = True
    host.faults[FILE] = [Fault(cut=len(old) // 2), Fault(status=404)]
    assert main(["fetch", NAME]) == 1
    host.files[PATH] = new
    assert main(["fetch", NAME]) == 0 and (folder / PATH).read_bytes() == new
    assert host.got(FILE)[-1].range == f"bytes={len(old) // 2}-"
    assert host.got(FILE)[-1].status == 200


def test_a_partial_file_without_version_or_digest_is_discarded(host: Host, folder: Path) -> None:
    host.versions = False
    part = download.partial_path(folder / PATH)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of who knows what")
    assert main(["fetch", NAME]) == 0
    assert host.got(FILE)[0].range is None
    assert (folder / PATH).read_bytes() == host.files[PATH]


def test_a_download_killed_before_the_rename_is_finished(host: Host, folder: Path) -> None:
    host.faults[FILE] = [Fault(cut=len(host.files[PATH]) - 1), Fault(status=404)]
    assert main(["fetch", NAME]) == 1
    part = download.partial_path(folder / PATH)
    part.write_bytes(host.files[PATH])
    assert main(["fetch", NAME]) == 0
    assert [each.status for each in host.got(FILE)] == [200, 404, 416]
    assert (folder / PATH).read_bytes() == host.files[PATH]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("digest", "not the right file: its sha256 begins "),
        ("page", "not the right file: truncated, or no .pth file"),
        ("404", "HTTP 404 Not Found"),
        ("403", "HTTP 403 Forbidden"),
    ],
)
def test_a_wrong_file_is_removed(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], fault: str, message: str,
) -> None:  # fmt: skip
    if fault == "digest":
        publish(monkeypatch, "0" * 64)
    elif fault == "page":  # what a proxy sends that wants a password first
        host.files[PATH] = b"<html>log in</html>"
    elif fault == "404":
        del host.files[PATH]
    else:
        host.faults[FILE] = [Fault(status=403)]
    assert message in failure(capsys, NAME)
    assert len(host.got(FILE)) == 1  # no use in asking again
    assert visible(folder) == [] and not list(folder.rglob("*.part"))


def test_a_large_file_of_the_hub_has_the_hubs_digest(
    host: Host, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.faults[LARGE] = [Fault(spoilt=True)]
    digest = hashlib.sha256(host.files[f"{HUB}/{LARGE}"]).hexdigest()
    assert f"the published one {digest[:12]}; it was removed" in failure(capsys, DEPTH)
    assert not (folder / DEPTH / LARGE).exists()
    assert main(["fetch", DEPTH]) == 0  # what was whole is not asked for again
    assert len(host.got("/config.json")) == len(host.got("/preprocessor_config.json")) == 1


@pytest.mark.parametrize("missing", ["file", "repository"])
def test_what_the_hub_does_not_have(
    host: Host, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    for name in list(host.files):
        if name.endswith(LARGE) or (missing == "repository" and name.startswith(HUB)):
            del host.files[name]
    line = failure(capsys, DEPTH, NAME)
    assert f"{DEPTH}: {host.address}/{HUB}/resolve/" in line and "HTTP 404" in line
    assert found(TABLE[NAME]) and not found(TABLE[DEPTH])  # one that fails stops no other


def test_a_repository_that_requires_a_token(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.locked = True
    line = failure(capsys, DEPTH)
    assert "GatedRepoError, HTTP 403; accept its terms on the hub, and set HF_TOKEN" in line


def test_transient_errors_are_retried_a_few_times(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.faults[FILE] = [Fault(status=503), Fault(status=429), Fault(cut=500), Fault(cut=0)]
    assert main(["fetch", NAME]) == 0
    assert [each.status for each in host.got(FILE)] == [503, 429, 200, 206, 206]
    host.faults["config.json"] = [Fault(status=503)] * download.ATTEMPTS
    assert "no success after 5 attempts (HTTP 503" in failure(capsys, DEPTH)


def test_another_range_than_requested_is_not_appended(host: Host, folder: Path) -> None:
    host.faults[FILE] = [Fault(cut=500), Fault(shifted=True)]
    assert main(["fetch", NAME]) == 0 and (folder / PATH).read_bytes() == host.files[PATH]
    assert [each.range for each in host.got(FILE)] == [None, "bytes=500-", None]


def test_the_timeout_is_an_environment_variable(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.2")
    host.patience = 2.0  # then it would go on
    host.faults[FILE] = [Fault(wait=2000)]
    assert main(["fetch", NAME]) == 0
    assert "no answer for 0.2 s, see HF_HUB_DOWNLOAD_TIMEOUT; trying" in capsys.readouterr().err
    assert [each.range for each in host.got(FILE)] == [None, "bytes=2000-"]
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    assert "HF_HUB_DOWNLOAD_TIMEOUT=soon: not a number of seconds" in failure(capsys, DEPTH)


def test_no_server_answers(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = "http://127.0.0.1:9"
    monkeypatch.setenv("LASR_MIRROR", closed)
    monkeypatch.setenv("HF_ENDPOINT", closed)
    line = failure(capsys, NAME, DEPTH)
    assert line.count("no success after 5 attempts") == 2 and "run the same command again" in line


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "http://[", "nowhere"])
def test_a_mirror_that_is_no_address(
    host: Host, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASR_MIRROR", address)
    assert f"{NAME}: {address}/{PATH}: " in failure(capsys, NAME)


def test_an_installed_wheel_does_not_stand_in_for_a_fetch(host: Host, folder: Path) -> None:
    host.files["realesrgan-x4plus/RealESRGAN_x4plus.pth"] = b"\x80\x02 not the real one"
    assert main(["fetch", "realesrgan-x4plus"]) == 1  # its size and digest are published
    assert host.got("RealESRGAN_x4plus.pth")


def test_through_a_proxy(host: Host, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("LASR_MIRROR", "http://weights.invalid")
    monkeypatch.setenv("HTTP_PROXY", host.address)
    monkeypatch.setenv("NO_PROXY", "")
    proxied = f"http://weights.invalid/{PATH}"
    host.files[proxied] = host.files[PATH]  # a proxy is asked for the whole address
    assert main(["fetch", NAME]) == 0
    assert host.got(FILE)[0].path == proxied and found(TABLE[NAME])


def test_a_mirror_serves_the_hubs_files_too_where_no_endpoint_is_set(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ENDPOINT")
    for file in TABLE[DEPTH].files:
        host.files[f"{DEPTH}/{file.name}"] = host.files[f"{HUB}/{file.name}"]
    assert main(["fetch", DEPTH]) == 0 and found(TABLE[DEPTH])
    assert not any("/resolve/" in each.path for each in host.seen)


OTHER = "another-server/an-equivalent-file"  # the path of a copy


@pytest.fixture
def copied(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The entry has an address of its own and one copy, and the user has no mirror."""
    monkeypatch.delenv("LASR_MIRROR")
    monkeypatch.delenv("HF_ENDPOINT")
    content = host.files[OTHER] = host.files[PATH][:-1] + b"?"
    copy = Copy(f"{host.address}/{OTHER}", hashlib.sha256(content).hexdigest(), len(content))
    digest = hashlib.sha256(host.files[PATH]).hexdigest()
    file = File(FILE, digest, len(host.files[PATH]), (copy,))
    entry = replace(TABLE[NAME], url=f"{host.address}/{PATH}", files=(file,), expected={})
    monkeypatch.setitem(TABLE, NAME, entry)
    return host


def test_copies_are_for_failures(copied: Host, folder: Path) -> None:
    assert main(["fetch", NAME]) == 0
    assert (folder / PATH).read_bytes() == copied.files[PATH] and not copied.got(OTHER)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(spoilt=True), "not the right file: its sha256 begins "),
        (Fault(status=404), "HTTP 404 Not Found"),
        (Fault(cut=0), "no success after 5 attempts"),
    ],
    ids=["wrong", "missing", "down"],
)
def test_a_copy_is_taken_where_the_first_address_fails(
    copied: Host, folder: Path, capsys: pytest.CaptureFixture[str], fault: Fault, reason: str
) -> None:
    copied.faults[FILE] = [fault] * (download.ATTEMPTS if fault.cut == 0 else 1)
    assert main(["fetch", NAME]) == 0
    content = copied.files[OTHER]
    assert (folder / PATH).read_bytes() == content and not list(folder.rglob("*.part"))
    assert [each.range for each in copied.got(OTHER)] == [None]  # nothing of the first is left
    lines = [line for line in capsys.readouterr().err.splitlines() if "trying again" not in line]
    assert len(lines) == 1 and f" {copied.address}/{PATH}: {reason}" in lines[0]
    assert lines[0].endswith(f"; trying {copied.address}/{OTHER}")
    assert read_sums(folder)[PATH] == hashlib.sha256(content).hexdigest()
    assert locate(NAME, "sr").path == folder / PATH  # also by the digest of the copy


def test_a_digest_decides_about_copies_too(
    copied: Host, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied.faults[FILE] = [Fault(status=404)]
    copied.faults["an-equivalent-file"] = [Fault(spoilt=True)]
    line = failure(capsys, NAME)
    assert f"{copied.address}/{OTHER}: not the right file: its sha256 begins" in line
    assert visible(folder) == [] and not list(folder.rglob("*.part"))


@pytest.mark.parametrize("variable", ["LASR_MIRROR", "HF_ENDPOINT"])
def test_who_has_a_mirror_gets_no_copy_from_elsewhere(
    copied: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, copied.address)
    copied.faults[FILE] = [Fault(status=404)]
    assert "HTTP 404" in failure(capsys, NAME) and not copied.got(OTHER)


def test_a_file_of_the_hub_may_have_a_copy(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LASR_MIRROR")
    monkeypatch.delenv("HF_ENDPOINT")

    def unreachable(*arguments: object) -> None:
        raise UserError("https://the-hub.invalid: HTTP 503", "try later")

    monkeypatch.setattr(fetch, "_hub_source", unreachable)
    files = []
    for file in TABLE[DEPTH].files:
        content = host.files[f"{HUB}/{file.name}"]
        host.files[f"copies/{file.name}"] = content
        digest = hashlib.sha256(content).hexdigest()
        copies = (Copy(f"{host.address}/copies/{file.name}", digest),)
        files.append(File(file.name, digest, copies=copies))
    monkeypatch.setitem(TABLE, DEPTH, replace(TABLE[DEPTH], files=tuple(files)))
    assert main(["fetch", DEPTH]) == 0 and found(TABLE[DEPTH])


def test_a_file_of_another_size_is_refused_before_it_comes(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(*arguments: object) -> None:
        raise AssertionError("it was transferred")

    size = len(host.files[PATH])
    entry = replace(TABLE[NAME], files=(File(FILE, size=size + 1),))
    monkeypatch.setitem(TABLE, NAME, entry)
    with monkeypatch.context() as patch:
        patch.setattr(download, "_append", written)
        line = failure(capsys, NAME)
    assert f"it has {size:,} bytes, the published one {size + 1:,}; it was not downloaded" in line
    assert len(host.got(FILE)) == 1 and not list(folder.rglob("*.part"))
    # The rest of a partial download counts with what is here.
    monkeypatch.setitem(TABLE, NAME, replace(entry, files=(File(FILE, size=size),)))
    host.faults[FILE] = [Fault(cut=1000)]
    assert main(["fetch", NAME]) == 0 and (folder / PATH).read_bytes() == host.files[PATH]
    assert [each.range for each in host.got(FILE)[1:]] == [None, "bytes=1000-"]


def command(*argv: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "lasr.weights", *argv],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(size: int, path: Path, process: "subprocess.Popen[str]") -> None:
    while not (path.is_file() and path.stat().st_size >= size):
        assert process.poll() is None, "it ended before that"
        time.sleep(0.01)


@pytest.mark.parametrize("source", ["plain file", "hub"])
def test_killed_midway_the_same_command_finishes(host: Host, folder: Path, source: str) -> None:
    if source == "hub":
        content = safetensors.numpy.save({"weight": np.random.default_rng(0).random(50_000)})
        name, file = DEPTH, LARGE
        host.files[f"{HUB}/{LARGE}"] = content
    else:
        content = b"\x80\x02" + os.urandom(400_000)  # more than a buffer holds
        name, file = NAME, FILE
        host.files[PATH] = content
    target = folder / name / file
    host.faults[file] = [Fault(wait=300_000)]
    process = command("fetch", name)
    wait_for(200_000, download.partial_path(target), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    received = download.partial_path(target).stat().st_size
    process = command("fetch", name)
    assert process.communicate()[1] == "" and process.returncode == 0
    assert target.read_bytes() == content
    sent = [(each.range, each.sent) for each in host.got(file) if each.status in (200, 206)]
    assert sent[1:] == [(f"bytes={received}-", len(content) - received)]
    assert not list(folder.rglob("*.part"))


def test_two_fetches_at_once_take_turns(host: Host, folder: Path) -> None:
    host.faults[FILE] = [Fault(wait=50_000)]
    first = command("fetch", NAME)
    wait_for(1, download.partial_path(folder / PATH), first)
    second = command("fetch", NAME, DEPTH)
    assert second.stderr is not None
    assert f"another process writes to {folder}; waiting" in second.stderr.readline()
    host.go_on.set()
    for process in (first, second):
        out, error = process.communicate()
        assert process.returncode == 0 and error == "", out
    assert len(host.got(FILE)) == 1 and (folder / PATH).read_bytes() == host.files[PATH]
    assert len(read_sums(folder)) == 4


def test_a_disk_that_is_full_midway(host: Host, folder: Path) -> None:
    content = host.files[PATH] = b"\x80\x02" + os.urandom(400_000)
    limited = f"ulimit -f 200; {sys.executable} -m lasr.weights fetch {NAME}"
    done = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: could not be fetched: ") and "File too large" in line
    assert main(["fetch", NAME]) == 0 and (folder / PATH).read_bytes() == content
    assert host.got(FILE)[1].range == f"bytes={200 * 1024}-"


def test_no_room_no_right_no_network(
    host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def line() -> str:
        assert main(["fetch", NAME]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: nothing is downloaded" in line()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3_900_000))
        assert f"{folder}: 67 MB are needed and 3 MB are free" in line()
    monkeypatch.setenv("LASR_WEIGHTS", "/proc/weights")
    assert "/proc/weights: cannot be written" in line()
    assert host.seen == []
