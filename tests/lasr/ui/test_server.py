"""Who may ask what of the page's server, its queue of jobs, and the command."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from lasr.errors import UserError
from lasr.ui import jobs
from lasr.ui.__main__ import chosen_token, listen
from lasr.ui.config import TOKEN, UiConfig
from lasr.ui.jobs import Job, Queue, Stopped
from lasr.ui.server import Page
from lasr.ui.uploads import Store
from tests.support.page import (
    SECRET,
    Client,
    as_bytes,
    client,
    noise,
    upscaled,
)

ROOT = Path(__file__).parents[3]


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
