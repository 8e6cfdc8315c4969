"""The addresses behind the page: the same results as the commands, and nothing else of the disk."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms
from pydantic import ValidationError
from starlette.testclient import TestClient

from lasr.__main__ import main as lasr
from lasr.errors import UserError
from lasr.pictures.png import decode_png
from lasr.ui import jobs
from lasr.ui.__main__ import chosen_token, listen
from lasr.ui.config import TOKEN, UiConfig
from lasr.ui.guard import Guard
from lasr.ui.jobs import Job, Queue, Stopped
from lasr.ui.photographs import FIELDS, Viewer
from lasr.ui.server import Page
from lasr.ui.uploads import NAME, Store, clean
from pipeline.query.questions import QUESTIONS
from pipeline.query.views import connect
from schemas.manifest import open_manifest

ROOT = Path(__file__).parents[3]
SECRET = "xyzzy-of-the-owner"
HERE = frozenset({"localhost", "127.0.0.1"})
Client = TestClient


def client(page: Page, token: str | None = None, hosts: frozenset[str] | None = HERE) -> Client:
    return TestClient(Guard(page.app(), hosts, token, "cookie"), base_url="http://127.0.0.1")  # type: ignore[arg-type]


@pytest.fixture
def page(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page over the manifest of the tests, in a project with a secret beside everything."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for folder in (tmp_path, tmp_path / "project"):
        (folder / "secret.txt").write_text(SECRET)
    (tmp_path / "dropped").mkdir()
    config = UiConfig(
        manifest=manifest, weights=["tiny-rrdb"], device="cpu", max_pixels=10**6, timeout=500
    )
    page = Page(config, tmp_path / "dropped")
    yield page
    page.close()


@pytest.fixture
def web(page: Page) -> Client:
    return client(page)


def wait(web: Client, job: str) -> dict[str, Any]:
    """The state of a job that has ended."""
    while True:
        answer: dict[str, Any] = web.get(f"/api/jobs/{job}").json()
        if answer["state"] not in ("waiting", "running"):
            return answer
        time.sleep(0.05)


def dropped(web: Client, path: str, content: bytes, name: str, **query: str) -> dict[str, Any]:
    """What became of a file that was dropped: what the job answers, or why there is none."""
    answer = web.post(path, params={"name": name, **query}, content=content)
    if answer.status_code != 202:
        refused: dict[str, Any] = answer.json()
        return refused
    return wait(web, answer.json()["job"])


def upscaled(web: Client, content: bytes, name: str) -> dict[str, Any]:
    return dropped(web, "/api/upscale", content, name, weights="tiny-rrdb")


def line(answer: dict[str, Any]) -> str:
    """The error of an answer, which is one printable line."""
    text = "; ".join(filter(None, answer["error"].values()))
    assert text.isprintable(), text
    return text


def as_bytes(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, form, **options)
        return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_a_picture_becomes_the_file_that_the_command_writes(web: Client, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"  # stored on its side
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = as_bytes(
        Image.fromarray(noise(40, 60, 3)), "JPEG", exif=exif, icc_profile=profile, dpi=(300, 300)
    )
    (tmp_path / "a photo.jpg").write_bytes(content)
    answer = upscaled(web, content, "a photo.jpg")
    assert answer["state"] == "done", answer
    assert (answer["from"], answer["to"], answer["name"]) == ([40, 60], [160, 240], "a photo.png")
    command = "lasr upscale --weights tiny-rrdb 'a photo.jpg' --out upscaled"
    assert answer["command"] == command
    got = web.get(answer["download"], params={"as": answer["name"]})
    assert "a%20photo.png" in got.headers["content-disposition"]
    out = tmp_path / "out"
    argv = ["--weights", "tiny-rrdb", "--out", str(out), "--device", "cpu"]
    assert lasr(["upscale", str(tmp_path / "a photo.jpg"), *argv]) == 0
    assert got.content == (out / "a photo.png").read_bytes()
    assert b"A camera" in got.content and Image.open(io.BytesIO(got.content)).info["icc_profile"]
    after = np.asarray(Image.open(io.BytesIO(web.get(answer["after"]).content)))
    assert (after == np.asarray(Image.open(out / "a photo.png"))).all()
    assert web.get(answer["before"]).headers["content-type"] == "image/png"


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header promises 10,000 megapixels."""
    content = bytearray(as_bytes(Image.new("L", (8, 8))))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(content)


BAD = {
    "bomb.png": (bomb, "more than 1000000 pixels"),
    "large.png": (lambda: as_bytes(Image.new("L", (1001, 1000))), "more than 1000000 pixels"),
    "bytes.png": (lambda: bytes(8 * 10**6 + 1), "over 8000000 bytes"),
    "empty.png": (lambda: b"", "the file is empty"),
    "text.png": (lambda: b"this is text", "not a readable picture"),
    "cut.png": (lambda: as_bytes(Image.fromarray(noise(64, 64, 3)))[:5000], "not a readable"),
    "page.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "page.svg: "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("path", ["/api/upscale", "/api/photograph"])
def test_a_bad_file_is_one_line_without_a_path_of_the_server(
    web: Client, page: Page, tmp_path: Path, name: str, path: str
) -> None:
    make, said = BAD[name]
    query = {"weights": "tiny-rrdb"} if "upscale" in path else {"depth": "scene-layout"}
    text = line(dropped(web, path, make(), name, **query))
    if path == "/api/upscale" or "pixels" in said or "bytes" in said:
        assert said in text
    assert text.startswith(f"{name}: ") and str(tmp_path) not in text and "/in/" not in text
    assert not [file for file in (tmp_path / "dropped").rglob("*") if file.is_file()]


def test_what_is_missing_is_said(web: Client) -> None:
    content = as_bytes(Image.fromarray(noise(40, 60, 3)))
    answer = dropped(web, "/api/upscale", content, "a.png", weights="/etc/passwd")
    assert "'/etc/passwd': no such weights here" in line(answer)
    answer = dropped(web, "/api/photograph", content, "a.png", depth="/etc/passwd")
    assert "'/etc/passwd': no such estimator here" in line(answer)
    answer = dropped(web, "/api/photograph", content, "a.png", depth="scene-layout")
    assert "60x40: a patch needs 224 pixels each way" in line(answer)
    for body in (b"", b"[]", b"nothing", b'"a"', b" " * 2**17):
        assert line(web.post("/api/query", content=body).json())
    assert "forgotten" in line(web.get("/api/jobs/none").json())
    assert "not kept any more" in line(web.post("/api/patches", json={"photograph": "x"}).json())


@pytest.mark.parametrize(
    "name",
    ["../../secret.txt", "..\\..\\secret.txt", "/etc/passwd", "..", ".", "", "a\nb\x1b[2J.png",
     "x" * 400 + ".png", "ü" * 300 + ".png", "result.png", "nul\0.png", ".hidden", "\udce9.png"],
)  # fmt: skip
def test_names_stay_inside_their_folder(name: str, tmp_path: Path) -> None:
    cleaned = clean(name)
    assert cleaned and "/" not in cleaned and cleaned not in (".", "..") and cleaned.isprintable()
    assert len(os.fsencode(cleaned)) <= NAME
    (tmp_path / cleaned).write_bytes(b"x")
    assert [path.parent for path in tmp_path.iterdir()] == [tmp_path]


def test_a_dropped_file_may_be_called_as_the_result_is(web: Client) -> None:
    content = as_bytes(Image.fromarray(noise(16, 16, 3)))
    for name in ("result.png", "before.png", "../../../secret.txt"):
        answer = upscaled(web, content, name)
        assert answer["state"] == "done" and answer["to"] == [64, 64], answer


def test_no_file_of_the_machine_can_be_fetched(web: Client, page: Page, tmp_path: Path) -> None:
    answer = upscaled(web, as_bytes(Image.fromarray(noise(16, 16, 3))), "a.png")
    key = answer["download"].split("/")[2]
    (tmp_path / "dropped" / key / "more.txt").write_text(SECRET)  # there, but never offered
    other = page.store.new()
    (other / "result.png").write_text(SECRET)  # of a job that still runs
    manifest = str(page.config.manifest)
    for path in (
        f"/files/{key}/more.txt", f"/files/{other.name}/result.png",
        f"/files/{key}/../../secret.txt",
        f"/files/{key}/..%2f..%2f..%2fsecret.txt", f"/files/{key}/%2e%2e/%2e%2e/secret.txt",
        "/files/../secret.txt", "/files/..%2f..%2fsecret.txt/x", "/secret.txt", "/../secret.txt",
        "//etc/passwd", "/etc/passwd", "/page.html", "/page.py", "/templates/page.html",
        f"/files//{tmp_path}/secret.txt", f"/file={tmp_path}/secret.txt", f"/{manifest}",
        f"/files/{key}/result.png/../more.txt", f"/gradio_api/file={tmp_path}/secret.txt",
        "/docs", "/openapi.json", "/api/files", "/files/%00/x",
    ):  # fmt: skip
        got = web.get(path)
        assert got.status_code in (404, 422), path
        assert SECRET not in got.text and "root:" not in got.text


def ask(web: Client, sql: str) -> dict[str, Any]:
    answer: dict[str, Any] = web.post("/api/query", json={"sql": sql}).json()
    return answer


@pytest.mark.parametrize(
    "sql",
    [
        "FROM read_text('secret.txt')", "FROM 'secret.txt'", "FROM read_blob('../secret.txt')",
        "FROM read_csv('/etc/passwd')", "FROM read_text('/proc/self/environ')", "FROM glob('/*')",
        "FROM read_text('../dropped/*/*')", "SELECT getenv('HOME')", "FROM read_duckdb('x.db')",
        "COPY patches TO 'out.csv'", "EXPLAIN ANALYZE COPY patches TO 'out.csv'",
        "WITH x AS (COPY (SELECT 1) TO 'out.csv') FROM x", "INSTALL httpfs", "LOAD httpfs",
        "ATTACH 'x.db'", "SET enable_external_access = true", "CREATE TABLE x AS SELECT 1",
        "PRAGMA database_list", "SELECT 1; SELECT 2", "FROM 'http://127.0.0.1/x.csv'",
        "SELECT patch_id FROM read_text('secret.txt'), patches", "", "SELEC 1",
        "FROM manifest", "SELECT content FROM read_text('secret.txt')",
    ],
)  # fmt: skip
def test_sql_reads_no_other_file_and_writes_none(web: Client, tmp_path: Path, sql: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    answer = ask(web, sql)
    assert SECRET not in json.dumps(answer) and "root:" not in json.dumps(answer)
    assert line(answer).startswith("SQL: "), answer
    assert sorted(tmp_path.rglob("*")) == before


def test_ready_questions_have_the_answers_of_duckdb(web: Client, manifest: Path) -> None:
    with connect(manifest) as connection:
        for name, question in QUESTIONS.items():
            answer = ask(web, question.sql)
            relation = connection.sql(question.sql)
            columns, rows = list(relation.columns), relation.fetchall()
            assert answer["columns"] == columns, name
            assert len(answer["rows"]) == min(len(rows), 200)
            assert answer["more"] == (len(rows) > 200)
            texts = [at for at, is_number in enumerate(answer["numbers"]) if not is_number]

            def key(row: Sequence[Any], texts: list[int] = texts) -> list[str]:
                return [str(row[at]) for at in texts]

            given = answer["rows"]
            if "ORDER BY" not in question.sql:  # DuckDB's threads end in any order
                assert len(rows) <= 200
                given, rows = sorted(given, key=key), sorted(rows, key=key)
            for got, row in zip(given, rows, strict=False):
                for is_number, value, expected in zip(answer["numbers"], got, row, strict=True):
                    if is_number and expected is not None:
                        assert value == pytest.approx(float(expected)), name
                    elif isinstance(expected, str):
                        assert value == expected, name
            has_ids = bool({"patch_id", "id", "kept"} & set(columns)) and columns[0] != "kind"
            assert bool(answer["patches"]) == (has_ids and bool(rows)), name


def test_pictures_are_those_of_the_patches(web: Client, manifest: Path) -> None:
    answer = ask(web, "SELECT patch_id AS kept, 1 AS n FROM patches ORDER BY patch_id DESC LIMIT 5")
    table = pq.read_table(manifest).sort_by([("patch_id", "descending")]).slice(0, 5).to_pylist()
    assert [patch["id"] for patch in answer["patches"]] == [row["patch_id"] for row in table]
    for patch, row in zip(answer["patches"], table, strict=True):
        assert (patch["role"], patch["photograph"]) == (row["role"], row["image_path"])
        assert patch["words"] == row["words"][:6]
        shown = np.asarray(Image.open(io.BytesIO(content_of(patch["pixels"]))), int)
        stored = decode_png(row["image"]["bytes"]).astype(int)
        assert shown.shape == stored.shape
        assert abs(shown - stored).mean() <= (0 if row["role"] == "lr" else 4)


def content_of(uri: str) -> bytes:
    return base64.b64decode(uri.split(",")[1])


def test_values_are_small_and_plain(web: Client) -> None:
    sql = """SELECT image, repeat('x', 1000) AS long, 'nan'::FLOAT AS nan,
        2::HUGEINT ** 70 AS large, 9007199254740993 AS exact, [1, 2] AS list, {'a': 1} AS struct,
        NULL AS nothing, true AS yes,
        1.5::DECIMAL(4, 1) AS decimal, 'a'::BLOB AS blob, MAP {'a': 1} AS map,
        DATE '2026-01-02' AS day FROM patches ORDER BY patch_id LIMIT 1"""
    answer = ask(web, sql)
    (row,) = answer["rows"]
    values = dict(zip(answer["columns"], row, strict=True))
    assert str(values.pop("image")).endswith(".png") and len(values.pop("long")) == 300
    assert float(values.pop("large")) == 2**70
    assert values == {
        "nan": "nan", "exact": "9007199254740993", "list": "[1, 2]", "struct": "{'a': 1}",
        "nothing": None, "yes": True, "decimal": 1.5, "blob": "a", "map": "{a=1}",
        "day": "2026-01-02",
    }  # fmt: skip
    assert len(ask(web, "FROM range(1000)")["rows"]) == 200 and ask(web, "FROM range(1000)")["more"]


def test_a_question_that_takes_too_long_or_too_much(page: Page, manifest: Path) -> None:
    slow = (
        "SELECT count(*) FROM range(10000000000) a, range(1000) b WHERE a.range % 7 = b.range % 3"
    )
    for limits, said in (
        ({"timeout": 0.3}, "SQL: no answer after 0.3 s; allow more with --timeout"),
        ({"memory_limit": "20MB"}, "needs more memory than --memory-limit allows"),
    ):
        config = page.config.model_copy(update=limits)
        other = Page(config, page.store.new())
        sql = (
            slow
            if "timeout" in limits
            else "SELECT string_agg(range::VARCHAR) FROM range(50000000)"
        )
        assert said in line(ask(client(other), sql))
        assert ask(client(other), "SELECT 1 AS a")["rows"] == [[1]]
        other.close()


def test_without_a_manifest_the_rest_works(page: Page, tmp_path: Path) -> None:
    other = Page(page.config.model_copy(update={"manifest": None}), page.store.new())
    about = client(other).get("/api/about").json()
    assert "data/patches.parquet: no manifest there" in about["manifest"]["problem"]
    assert "no manifest there" in line(ask(client(other), "SELECT 1"))
    assert about["weights"][0]["label"] == "tiny-rrdb" and "scene-layout" in about["estimators"]
    other.close()


def test_runs_can_be_chosen_by_name_only(page: Page, tmp_path: Path) -> None:
    for name in ("data/runs/mine/model.safetensors", "data/runs/mine/best.safetensors"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"damaged")
    labels = [choice["label"] for choice in client(page).get("/api/about").json()["weights"]]
    assert {"mine (your run)", "mine (your run, best)", "rrdb-small"} <= set(labels)
    content = as_bytes(Image.fromarray(noise(16, 16, 3)))
    answer = dropped(client(page), "/api/upscale", content, "a.png", weights="mine (your run)")
    assert answer["state"] == "failed" and "data/runs/mine/model.safetensors: " in line(answer)


def test_patches_are_those_of_a_build(web: Client, manifest: Path, photographs: Path) -> None:
    """The rows of a build with the same parameters, which the manifest's metadata records."""
    name = "china.jpg"
    parameters = open_manifest(manifest, columns=()).metadata["parameters"]
    content = (photographs / name).read_bytes()
    opened = dropped(web, "/api/photograph", content, name, depth=parameters["depth"])
    assert opened["state"] == "done", opened
    chosen = {name: parameters[name] for name in FIELDS}
    asked = {"photograph": opened["photograph"], **chosen}
    got = web.post("/api/patches", json=asked).json()["patches"]
    columns = ["role", "x", "y", "rank", "distance", "image", "image_path"]
    rows = [row for row in pq.read_table(manifest, columns=columns).to_pylist()
            if row["image_path"] == name]  # fmt: skip
    key = lambda patch: (patch["role"], patch["rank"])  # noqa: E731
    assert len(got) == len(rows) == 8
    for patch, row in zip(sorted(got, key=key), sorted(rows, key=key), strict=True):
        assert (patch["x"], patch["y"]) == (row["x"], row["y"])
        assert patch["distance"] == pytest.approx(row["distance"], abs=1e-3)
        if patch["role"] == "lr":
            assert content_of(patch["pixels"]) == row["image"]["bytes"]
    assert opened["size"] == [640, 427]
    map_ = Image.open(io.BytesIO(web.get(opened["distance"]).content))
    assert map_.size == (640, 427)


def test_sliders_select_and_do_not_compute_the_map_again(
    web: Client, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    real = Viewer._estimator

    def counted(self: Viewer, name: str) -> Any:
        loaded.append(name)
        return real(self, name)

    monkeypatch.setattr(Viewer, "_estimator", counted)
    content = (photographs / "chelsea.png").read_bytes()
    opened = dropped(web, "/api/photograph", content, "chelsea.png", depth="scene-layout")
    plain = {"min_separation": None, "min_texture": 0, "far_texture": 0}
    base = {"photograph": opened["photograph"], "k": 6, **plain}

    def roles(**changed: Any) -> list[str]:
        patches = web.post("/api/patches", json=base | changed).json()["patches"]
        return [patch["role"] for patch in patches]

    assert roles().count("lr") == 6 and roles(k=2).count("lr") == 2
    assert roles(min_separation=250).count("lr") < 6
    assert roles(far_texture=1).count("lr") == 0 and roles(far_texture=1).count("hr") > 0
    assert roles(min_texture=1) == []
    for wrong in ({"k": 0}, {"k": 65}, {"k": "x"}, {"min_texture": -1}, {"far_texture": "nan"}):
        answer = web.post("/api/patches", json=base | wrong).json()
        assert answer.get("patches") == [] or line(answer), wrong
    assert len(roles(min_separation=10**9)) == 2
    assert loaded == ["scene-layout"]


# ---- who may ask ----


def test_another_name_or_site_is_refused(page: Page) -> None:
    web = client(page)
    assert web.get("/", headers={"host": "evil.example:7860"}).status_code == 403
    assert web.get("/api/about", headers={"host": "127.0.0.1.evil.example"}).status_code == 403
    assert web.get("/", headers={"host": "localhost:7860"}).status_code == 200
    body = {"sql": "SELECT 1 AS a"}
    for headers in (
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:9"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    ):  # fmt: skip
        assert web.post("/api/query", json=body, headers=headers).status_code == 403, headers
    same = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert web.post("/api/query", json=body, headers=same).json()["rows"] == [[1]]


def test_a_token_opens_the_page_once_it_is_a_cookie(page: Page) -> None:
    token = "0123456789abcdef"
    web = client(page, token, hosts=None)
    for path in ("/", "/page.js", "/api/about", "/?token=", "/?token=0123456789abcdeg",
                 f"/api/about?token={token}", "/?token=%C3%BC"):  # fmt: skip
        got = web.get(path, headers={"host": "any.example"})
        assert got.status_code == 401 and "LA-SR" not in got.text, path
    assert web.post("/api/query", json={"sql": "SELECT 1"}).status_code == 401
    got = web.get(f"/?token={token}", follow_redirects=False)
    assert got.status_code == 303 and got.headers["location"] == "/"
    cookie = got.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert web.get("/api/about").status_code == 200


def test_every_answer_forbids_what_the_page_does_not_need(page: Page) -> None:
    for web, path in ((client(page), "/"), (client(page), "/none"), (client(page, "x" * 16), "/")):
        headers = web.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and "no-store" in headers.values()


def test_other_machines_always_need_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert chosen_token(UiConfig(host=host)) is None
        assert len(chosen_token(UiConfig(host=host, token=True)) or "") == 32
    for host in ("0.0.0.0", "::", "192.0.2.1", "machine.example", "localhost.example"):
        tokens = {chosen_token(UiConfig(host=host)) for _ in range(2)}
        assert len(tokens) == 2 and None not in tokens
    monkeypatch.setenv(TOKEN, "abcdefghijklmnop")
    assert chosen_token(UiConfig(host="0.0.0.0")) == "abcdefghijklmnop"
    for short in ("abc", "with a space in it", "ü" * 20):
        monkeypatch.setenv(TOKEN, short)
        with pytest.raises(UserError, match="not a token"):
            chosen_token(UiConfig(host="0.0.0.0"))
    with pytest.raises(ValidationError):
        UiConfig(port=65536)


# ---- one job at a time ----


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def test_jobs_run_one_at_a_time_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, gate, order = Queue(), threading.Event(), list[str]()

    def job(name: str) -> Callable[[Job], dict[str, Any]]:
        def work(job: Job) -> dict[str, Any]:
            order.append(f"{name} begins")
            gate.wait()
            job.progress(0.5)
            order.append(f"{name} ends")
            return {"name": name}

        return work

    first, second, third = (queue.add(job(name)) for name in "abc")
    until(lambda: order)
    assert queue.look(third.id)["ahead"] == 2 and queue.look(first.id)["state"] == "running"
    queue.end(second.id)
    gate.set()
    until(lambda: third.state == "done")
    assert order == ["a begins", "a ends", "c begins", "c ends"]
    assert queue.look(second.id)["state"] == "stopped" and queue.look(first.id)["name"] == "a"
    gate.clear()
    running = queue.add(job("d"))
    until(lambda: running.state == "running")
    for _ in range(jobs.MOST):
        queue.add(job("x"))
    with pytest.raises(UserError, match="8 jobs wait already"):
        queue.add(job("y"))
    monkeypatch.setattr(jobs, "LEFT", 0.0)  # the pages of all of them have left
    gate.set()
    until(lambda: queue.look(running.id)["state"] == "stopped")
    queue.close()


def test_a_stopped_upscaling_leaves_nothing(page: Page, tmp_path: Path) -> None:
    class Impatient(Job):
        def progress(self, share: float) -> None:
            raise Stopped

    folder = page.store.new()
    source = folder / "in" / "a.png"
    source.parent.mkdir()
    source.write_bytes(as_bytes(Image.fromarray(noise(16, 16, 3))))
    with pytest.raises(Stopped):
        page.enlarger.upscale(Impatient(lambda job: {}), "tiny-rrdb", source)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["a.png"]


def test_old_files_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    folders = [store.new() for _ in range(30)]
    assert len(list(tmp_path.iterdir())) == 24 and not folders[0].exists()
    (folders[-1] / "a.png").write_bytes(b"x")
    address = store.offer(folders[-1] / "a.png")
    assert store.file(*address.split("/")[2:]).read_bytes() == b"x"
    with pytest.raises(UserError):
        store.file(folders[0].name, "a.png")


# ---- the command ----


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "lasr", "ui", "--port", "0", "--token"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    address = process.stdout.readline().strip()
    found = re.fullmatch(r"(http://127\.0\.0\.1:(\d+)/)\?token=[0-9a-f]{32}", address)
    assert found, address
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    assert b"<title>LA-SR</title>" in opener.open(address).read()
    with pytest.raises(UserError, match="choose another --port"):
        listen(UiConfig(port=int(found[2])))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130 and error.count("\n") == 1 and error.startswith("stopped"), (
        error
    )
    assert not list(tmp_path.glob("lasr-ui-*"))


def test_hosts_that_are_none(tmp_path: Path) -> None:
    for host in ("nowhere.invalid", "a b", "256.1.1.1", "ü" * 70, "x\ny"):
        with pytest.raises(UserError, match="--host"):
            listen(UiConfig(host=host, port=0))
    with listen(UiConfig(host="::1", port=0)) if socket.has_ipv6 else socket.socket() as bound:
        assert bound.fileno() >= 0
