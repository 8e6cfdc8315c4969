"""A client of the page of `lasr ui`, without a browser, and pictures to drop on it."""

import base64
import io
import time
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from lasr.ui.guard import Guard
from lasr.ui.server import Page

SECRET = "xyzzy-of-the-owner"
HERE = frozenset({"localhost", "127.0.0.1"})
Client = TestClient


def client(page: Page, token: str | None = None, hosts: frozenset[str] | None = HERE) -> Client:
    return TestClient(Guard(page.app(), hosts, token, "cookie"), base_url="http://127.0.0.1")  # type: ignore[arg-type]


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


def ask(web: Client, sql: str) -> dict[str, Any]:
    answer: dict[str, Any] = web.post("/api/query", json={"sql": sql}).json()
    return answer


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


def content_of(uri: str) -> bytes:
    return base64.b64decode(uri.split(",")[1])
