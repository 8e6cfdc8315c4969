"""Photographs and manifests in object storage: against moto's server, which speaks S3 over HTTP."""

import os
import re
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler

import pipeline.run
import trainer.run
from lasr.errors import UserError
from lasr.storage import filesystem
from lasr.storage.config import StorageConfig
from lasr.storage.filesystem import file_system
from lasr.storage.manifest import open_manifest
from pipeline import publication
from pipeline.build.cache import Cache
from pipeline.build.lock import check_free, sole_build
from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from pipeline.inputs.photographs import find
from pipeline.stages.images import load
from pipeline.storage import StorageError, StoragePath
from tests.conftest import run_stages
from tests.support import killed, processes
from tests.support.upstream import save_depth_anything
from tests.support.words import WORDS
from trainer.data.dataset import COLUMNS, Patches

NAMES = ("china.jpg", "coffee.png", "rocket.jpg", "chelsea.png")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Its address, and all requests: what was asked, and in which thread of ours nobody knows."""
    requests: list[tuple[str, int]] = []

    def note(self: WSGIRequestHandler, code: int = 0, size: int = 0) -> None:
        requests.append((f"{self.command} {self.path}", int(code)))

    original, WSGIRequestHandler.log_request = WSGIRequestHandler.log_request, note  # type: ignore
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    yield f"http://127.0.0.1:{moto.get_host_and_port()[1]}", requests
    moto.stop()
    WSGIRequestHandler.log_request = original  # type: ignore[method-assign]


@pytest.fixture
def bucket(
    server: tuple[str, list[tuple[str, int]]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> str:
    """`s3://NAME`, a bucket for one test, reached by the usual variables alone."""
    for name, value in (
        ("AWS_ENDPOINT_URL", server[0]), ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "testing"), ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    name = re.sub("[^a-z]+", "-", request.node.name)[:60].strip("-")
    urllib.request.urlopen(urllib.request.Request(f"{server[0]}/{name}", method="PUT"))
    file_system.cache_clear()
    monkeypatch.setattr(publication, "GRACE", 0)  # nobody reads meanwhile
    server[1].clear()
    return f"s3://{name}"


@pytest.fixture
def asked(server: tuple[str, list[tuple[str, int]]]) -> list[tuple[str, int]]:
    """All requests of the test so far, with their status."""
    return server[1]


@pytest.fixture
def album(photographs: Path, tmp_path: Path) -> Path:
    """Four photographs; two of the names need care in an address."""
    folder = tmp_path / "album"
    (folder / "Größe #1 100%").mkdir(parents=True)
    for name in NAMES[:2]:
        shutil.copy2(photographs / name, folder / name)
    for name in NAMES[2:]:
        shutil.copy2(photographs / name, folder / "Größe #1 100%" / f"a b%20{name}")
    return folder


def upload(folder: Path, target: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            (StoragePath(target) / str(file.relative_to(folder))).write_bytes(file.read_bytes())


def settings(images: object, out: object, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {"images": [str(images)], "out": str(out), "profile": "test", "k": 2}
    return BuildConfig(**(plain | {"shard_size": 2, "workers": 2} | changes))


def build(images: object, out: object, **changes: Any) -> list[str]:
    return run_stages(settings(images, out, **changes))


def table(place: StoragePath) -> Any:
    return ds.dataset(place.key, filesystem=place.fs, format="parquet").to_table()


def rows(out: object) -> list[dict[str, Any]]:
    return sorted(table(StoragePath(str(out))).to_pylist(), key=lambda row: str(row["patch_id"]))


def catalogue(out: object) -> list[dict[str, Any]]:
    place = StoragePath(str(out)).parent / "images.parquet"
    found: list[dict[str, Any]] = pq.read_table(place.key, filesystem=place.fs).to_pylist()
    return found


@pytest.mark.parametrize(
    ("photos", "manifest"),
    [("{s3}/photos", "{s3}/data"), ("{s3}/photos", "{disk}"), ("{album}", "{s3}/data")],
    ids=["storage to storage", "storage to disk", "disk to storage"],
)
def test_rows_are_those_of_a_local_build(
    photos: str, manifest: str, album: Path, tmp_path: Path, bucket: str
) -> None:
    names = {"s3": bucket, "disk": tmp_path / "disk", "album": album}
    upload(album, f"{bucket}/photos")
    out = f"{manifest.format(**names)}/patches.parquet"
    build(photos.format(**names), out)
    build(album, tmp_path / "local/patches.parquet")
    assert rows(out) == rows(tmp_path / "local/patches.parquet")
    assert catalogue(out) == catalogue(tmp_path / "local/patches.parquet")
    assert len(rows(out)) == 16
    assert build(photos.format(**names), out) == []


def test_a_manifest_built_there_is_trained_on_there(
    album: Path, bucket: str, tmp_path: Path
) -> None:
    out, copy = StoragePath(f"{bucket}/data/patches.parquet"), tmp_path / "copy.parquet"
    build(album, out)
    copy.mkdir()
    for name in out.names():
        (copy / name).write_bytes((out / name).read_bytes())
    settings = StorageConfig(cache=tmp_path / "cache")
    there, here = open_manifest(str(out), COLUMNS, settings), open_manifest(copy, COLUMNS)
    assert there.identity == here.identity
    first, second = (next(Patches(m).batches(0, 2, 4, 1)) for m in (there, here))
    assert first.lr.equal(second.lr) and first.hr_captions == second.hr_captions


def test_nothing_is_fetched_twice(
    album: Path, bucket: str, tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    upload(album, f"{bucket}/photos")
    save_depth_anything(tmp_path / "depth")

    def fetched() -> int:
        count = sum(what.startswith("GET") and "/photos/" in what for what, _ in asked)
        asked.clear()
        return count

    def again(**changes: Any) -> list[str]:
        out = f"{bucket}/data/patches.parquet"
        return build(f"{bucket}/photos", out, depth=str(tmp_path / "depth"), **changes)

    assert len(again()) == 2 and fetched() == 4
    assert again() == [] and fetched() == 0
    # Another k finds the distance maps; other words find the features, and the rows.
    kept = [what for what, status in asked if "/distance/" in what]
    assert kept == []
    assert len(again(k=1)) == 2
    assert sum(what.startswith("GET") and "/distance/" in what for what, _ in asked) == 4
    assert not any(what.startswith("PUT") and "/distance/" in what for what, _ in asked)
    assert fetched() == 4
    words = tmp_path / "words.txt"
    words.write_text("\n".join(WORDS[:24]))
    assert len(again(k=1, dictionary=words)) == 2 and fetched() == 0
    # A new photograph costs only itself, and the parts of before stay.
    photograph = (album / NAMES[0]).read_bytes()
    (StoragePath(bucket) / "photos" / "new.jpg").write_bytes(photograph + b"\0")
    asked.clear()
    assert len(again(k=1, dictionary=words)) == 1 and fetched() == 1
    out = StoragePath(f"{bucket}/data/patches.parquet")
    assert len(out.names()) == 1 + 3 and len(rows(out)) == 10  # version.parquet and the parts


def test_a_large_file_is_one_request_and_a_small_one_too(
    bucket: str, asked: list[tuple[str, int]]
) -> None:
    place = StoragePath(f"{bucket}/large")
    place.write_bytes(b"x" * 3_000_000)
    assert [what.split()[0] for what, _ in asked] == ["PUT"]
    asked.clear()
    assert len(place.read_bytes()) == 3_000_000
    assert [what.split()[0] for what, _ in asked] == ["HEAD", "GET"]


def test_duplicates_and_parts_that_no_longer_belong(album: Path, bucket: str) -> None:
    upload(album, f"{bucket}/photos")
    out = StoragePath(f"{bucket}/data/patches.parquet")
    build(f"{bucket}/photos", out)
    twin = StoragePath(f"{bucket}/photos/twin.jpg")
    twin.write_bytes((album / "china.jpg").read_bytes())
    # Beside it in its part, one that stays: the part is published without the twin, then with it.
    more = StoragePath(f"{bucket}/photos/more.png")
    more.write_bytes((album / "coffee.png").read_bytes() + b"\0")
    build(f"{bucket}/photos", out)
    status = {row["path"]: (row["status"], row["error"]) for row in catalogue(out)}
    assert status["twin.jpg"] == ("duplicate", "same bytes as china.jpg")
    assert len(rows(out)) == 20
    # The first goes: its part is made again, the twin takes its place, the old part disappears.
    before = set(out.names())
    StoragePath(f"{bucket}/photos/china.jpg").remove()
    build(f"{bucket}/photos", out)
    assert {row["path"] for row in catalogue(out) if row["status"] == "ok"} >= {"twin.jpg"}
    assert len(rows(out)) == 20 and set(out.names()) != before
    work = StoragePath(f"{bucket}/data/patches.work").names()
    parts = [name for name in work if name.startswith("part-")]
    assert len(parts) == 2 * (len(out.names()) - 1)


def test_a_killed_build_ends_like_an_undisturbed_one(
    album: Path, bucket: str, tmp_path: Path
) -> None:
    upload(album, f"{bucket}/photos")
    out = StoragePath(f"{bucket}/data/patches.parquet")
    config = settings(f"{bucket}/photos", out, shard_size=1, workers=1)
    arguments = (config, killed.Environment(dict(os.environ)))
    child = processes.context().Process(target=killed.child, args=arguments)
    child.start()
    work = StoragePath(f"{bucket}/data/patches.work")
    while not any(name.endswith(".images.parquet") for name in work.names()):
        assert child.is_alive(), "ended before it could be killed"
        time.sleep(0.01)
    child.kill()
    child.join()
    assert "lock" in work.names() and not out.exists()
    with sole_build(work):  # its holder was a process of this machine
        made = build(f"{bucket}/photos", out, shard_size=1, workers=1)
    assert len(made) < 4
    assert "lock" not in work.names()
    build(album, tmp_path / "local/patches.parquet")
    assert rows(out) == rows(tmp_path / "local/patches.parquet")


def test_one_build_at_a_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work = StoragePath(f"{bucket}/patches.work")
    check_free(work)
    with sole_build(work):
        for attempt in (lambda: check_free(work), lambda: sole_build(work).__enter__()):
            with pytest.raises(UserError, match=rf"{work}: being built by process \d+ on .*lock$"):
                attempt()
    check_free(work)
    with sole_build(work):
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        monkeypatch.setattr("os.kill", lambda *_: pytest.fail("a process of another machine"))
        with pytest.raises(UserError, match="if that build died, remove"):
            check_free(work)
    # Both looked before either wrote: only the last to write goes on.
    read = StoragePath.read_bytes
    answers = iter([FileNotFoundError(), None])

    def late(place: StoragePath) -> bytes:
        if isinstance(answer := next(answers), Exception):
            raise answer
        StoragePath(str(place)).write_bytes(b'{"host": "other", "pid": 1, "since": 0}')
        return read(place)

    monkeypatch.setattr(StoragePath, "read_bytes", late)
    with pytest.raises(UserError, match="process 1 on other"), sole_build(work):
        pytest.fail("two builds at once")


def error_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert pipeline.run.main([*argv, "--profile", "test"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ")
    return error[-1]


def test_mistakes_are_one_line(
    bucket: str, album: Path, server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    argv = ["--images", f"{bucket}-2/photos", "--out", f"{bucket}/data/patches.parquet"]
    assert f"{bucket}-2/photos: no such folder or file" in error_of(argv, capsys)
    argv = ["--images", str(album), "--out", f"{bucket}-2/data/patches.parquet"]
    with pytest.raises(StorageError, match=r"cannot be written \(NO_SUCH_BUCKET during") as raised:
        build(album, argv[-1])
    assert "Request ID" not in str(raised.value)
    cache = str(tmp_path / "cache")
    status = trainer.run.main(["--manifest", f"{bucket}/data/patches.parquet", "--cache", cache])
    assert status == 1 and f"{bucket}/data/patches.parquet: no manifest" in capsys.readouterr().err
    with pytest.raises(UserError, match="nosuch://bucket: cannot be opened"):
        find(["nosuch://bucket/photos"])
    # A key that the storage does not know.
    plain = {"Content-Type": "text/plain"}
    reset = urllib.request.Request(f"{server[0]}/moto-api/reset-auth", b"0", plain)
    urllib.request.urlopen(reset)
    argv = ["--images", f"{bucket}/photos", "--out", str(tmp_path / "x.parquet")]
    try:
        assert "cannot be read (ACCESS_DENIED during" in error_of(argv, capsys)
    finally:
        reset.data = b"10000000"
        urllib.request.urlopen(reset)
    # Nobody listens there; and one that takes the call and never answers.
    for listening in (False, True):
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            if listening:
                port.listen()
                monkeypatch.setattr(filesystem, "REQUEST_TIMEOUT", 1)
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port.getsockname()[1]}")
            file_system.cache_clear()
            assert "cannot be read (NETWORK_CONNECTION during" in error_of(argv, capsys)


def test_one_photograph_that_cannot_be_fetched_stops_nothing(album: Path, bucket: str) -> None:
    upload(album, f"{bucket}/photos")
    found = find([f"{bucket}/photos"])
    StoragePath(f"{bucket}/photos/china.jpg").remove()
    with pytest.raises(Exception, match="cannot be read: ") as raised:
        load(next(one for one in found if one.name == "china.jpg"), 224)
    assert getattr(raised.value, "status") == "unreadable"  # noqa: B009


def test_small_objects_go_by_many_threads(
    album: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a round trip: none may wait in the thread that feeds the networks."""
    threads: dict[str, set[str]] = {"read": set(), "put": set()}
    read, put = StoragePath.read_bytes, Cache.put_features

    def noted(kind: str, function: Any) -> Any:
        def call(*given: Any) -> Any:
            if not str(given[0]).endswith((".parquet", ".md")):  # once a build
                threads[kind].add(threading.current_thread().name)
            time.sleep(0.05)  # a round trip
            return function(*given)

        return call

    monkeypatch.setattr(StoragePath, "read_bytes", noted("read", read))
    monkeypatch.setattr(Cache, "put_features", noted("put", put))
    upload(album, f"{bucket}/photos")
    build(f"{bucket}/photos", f"{bucket}/data/patches.parquet", shard_size=4)
    for names in threads.values():
        assert names == {"photographs_0", "photographs_1"}


def objects(bucket: str) -> dict[str, bytes]:
    """Every object of a bucket with its content."""
    place = StoragePath(bucket)
    found = place.fs.get_file_info(pafs.FileSelector(place.key, recursive=True))
    return {
        info.path: StoragePath(f"s3://{info.path}").read_bytes()
        for info in found
        if info.type == pafs.FileType.File
    }


@pytest.mark.parametrize(
    "foreign",
    [
        "data/images.parquet",
        "data/duplicates.parquet",
        "data/card.md",
        "data/patches.parquet/notes.txt",
        "data/patches.parquet/part-0123456789abcdef.parquet",
        "data/patches.parquet/folder/notes.txt",
        "data/patches.work/notes.txt",
        "data/patches.work/lock",
        "data/patches.work/part-0123456789abcdef.images.parquet",
    ],
)
def test_foreign_objects_stay(foreign: str, album: Path, bucket: str) -> None:
    StoragePath(f"{bucket}/photos/a.png").write_bytes((album / "coffee.png").read_bytes())
    content = b"precious"
    if foreign.endswith(".parquet"):
        with pa.BufferOutputStream() as stream:
            pq.write_table(pa.table({"a": [1]}), stream)
            content = stream.getvalue().to_pybytes()
    StoragePath(f"{bucket}/{foreign}").write_bytes(content)
    before = objects(bucket)
    with pytest.raises(UserError, match=r"nothing was changed; choose another --out$"):
        build(f"{bucket}/photos", f"{bucket}/data/patches.parquet")
    assert objects(bucket) == before


@pytest.mark.parametrize(
    "out",
    ["", "/", "/photos", "/photos/", "//photos", "/photos/new", "/x/../photos/new",
     "/photos/deep/..",     "/.", "/.."],
)  # fmt: skip
def test_outputs_and_inputs_are_apart_there_too(out: str, album: Path, bucket: str) -> None:
    StoragePath(f"{bucket}/photos/deep/a.png").write_bytes((album / "coffee.png").read_bytes())
    before = objects(bucket)
    images = f"{bucket}/photos/deep" if out.endswith("photos/") else f"{bucket}/photos"
    with pytest.raises(UserError, match="--out"):
        build(images, bucket + out)
    assert objects(bucket) == before


def test_what_came_during_a_build_stays(
    album: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(album, f"{bucket}/photos")
    out = f"{bucket}/data/patches.parquet"
    build(f"{bucket}/photos", out)
    late = [StoragePath(f"{bucket}/data/{name}") for name in
            ("patches.parquet/notes.txt", "patches.work/notes.txt", "patches.work/kept/notes.txt",
             "patches.work/kept/features/notes.txt")]  # fmt: skip
    config = BuildConfig(images=[f"{bucket}/photos"], out=out, profile="test", k=1, shard_size=2)
    planned = plan_build(prepare(config))
    made = [build_shard(planned.job, shard) for shard in planned.plan.to_do]
    for place in late:
        place.write_bytes(b"precious")
    finish(planned, made)
    assert [place.read_bytes() for place in late] == [b"precious"] * len(late)
    card = StoragePath(f"{bucket}/data/card.md")
    card.write_bytes(b"precious")
    with pytest.raises(UserError, match="not ours to replace"):
        finish(planned, made)
    assert card.read_bytes() == b"precious"
