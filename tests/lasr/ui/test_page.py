"""The page in a browser, as it is used: a real server, and Chromium."""

import io
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasr.ui.config import UiConfig
from lasr.ui.server import Page, server
from tests.support.page import SECRET, as_bytes, noise

HOSTILE = "a<img src=x onerror=alert(1)>'\".png"


@pytest.fixture(scope="module")
def address(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on this machine; its address."""
    folder = tmp_path_factory.mktemp("ui")
    config = UiConfig(
        manifest=manifest, weights=["tiny-rrdb"], runs=folder / "runs", device="cpu",
        max_pixels=10**6, timeout=500,
    )  # fmt: skip
    page = Page(config, folder)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        serving = server(page, "127.0.0.1", port, None)
        thread = threading.Thread(target=serving.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{port}/"
        serving.should_exit = True
        thread.join()
    page.close()


@pytest.fixture
def opened(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A loaded page; whatever it complains of, or asks of another host, fails the test."""
    width = getattr(request, "param", 1400)
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, noise = context.new_page(), list[str]()
    page.set_default_timeout(500_000)
    ours = (address, "data:", "blob:")
    expected = "Failed to load resource: the server responded with a status of 422"
    page.on("console", lambda m: None if m.text.startswith(expected) else noise.append(m.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(ours) else noise.append(r.url))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    yield page
    assert noise == []
    context.close()


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def drop(page: Any, panel: str, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.set_input_files(f"#{panel} input[type=file]", file)


def test_upscale_compare_and_download(opened: Any) -> None:
    page = opened
    assert page.locator("#upscale .go").is_disabled()
    drop(page, "upscale", HOSTILE, as_bytes(Image.fromarray(noise(30, 40, 3))))
    assert page.locator("#upscale .chosen").inner_text() == f"{HOSTILE}, 0.0 MB"
    page.select_option("#upscale [name=weights]", "tiny-rrdb")
    page.click("#upscale .go")
    expect(page.locator("#upscale .compare")).to_be_visible()
    assert page.locator("#upscale .sizes").inner_text().startswith("40\u00d730 → 160\u00d7120")
    sizes = "[...document.querySelectorAll('.stage img')].map(i => [i.naturalWidth, i.width])"
    (after, shown), (before, same) = page.evaluate(sizes)
    assert (after, before) == (160, 40) and shown == same > 400
    over = "getComputedStyle(document.querySelector('.over')).clipPath"
    assert page.evaluate(over) == "inset(0px 50% 0px 0px)"
    page.focus(".slider")
    page.keyboard.press("Home")
    assert page.evaluate(over) == "inset(0px 100% 0px 0px)"
    box = page.locator(".stage").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + 20)
    found = re.search(r"0px ([\d.]+)% 0px", page.evaluate(over))
    assert found and abs(float(found[1]) - 25) < 1
    page.select_option("#upscale [name=zoom]", "1")
    assert page.locator(".stage").bounding_box()["width"] == 160
    with page.expect_download() as download:
        page.click(".download")
    assert download.value.suggested_filename.endswith(".png")
    result = np.asarray(Image.open(io.BytesIO(Path(download.value.path()).read_bytes())))
    assert result.shape == (120, 160, 3)


def test_errors_are_lines_in_the_page(opened: Any) -> None:
    page = opened
    error = page.locator("#upscale .error")
    drop(page, "upscale", "a.png", b"no picture")
    page.click("#upscale .go")
    expect(error).to_contain_text("a.png: not a readable picture")
    drop(page, "upscale", "b.png", as_bytes(Image.new("L", (1001, 1000))))
    expect(error).to_be_hidden()
    page.click("#upscale .go")
    expect(error).to_contain_text("b.png: 1001x1000: more than 1000000 pixels")
    drop(page, "upscale", "c.png", bytes(8 * 10**6 + 1))
    page.click("#upscale .go")
    expect(error).to_contain_text("c.png: 8.0 MB is over the limit of 8.0 MB")
    assert page.locator("#upscale .go").is_enabled()  # to try again


def test_ask_by_question_and_by_sql(opened: Any) -> None:
    page = opened
    page.click("#tab-ask")
    figures = page.locator("#ask .gallery figure")
    expect(figures).not_to_have_count(0)  # the first question is asked without a click
    assert figures.count() == page.locator("#ask tbody tr").count()
    broken = "[...document.querySelectorAll('.gallery img')].filter(i => !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    page.select_option("#ask [name=ready]", "far-or-near")
    expect(page.locator("#ask tbody tr")).to_have_count(2)
    assert figures.count() == 0 and "lasr query --ask far-or-near" in page.inner_text("#ask .why")
    assert "GROUP BY role" in page.input_value("#ask textarea")
    page.fill(
        "#ask textarea", "SELECT '<script>alert(1)</script><img src=x onerror=alert(1)>' AS a"
    )
    page.keyboard.press("Control+Enter")
    expect(page.locator("#ask tbody tr")).to_have_count(1)
    expect(page.locator("#ask tbody td")).to_have_text(
        "<script>alert(1)</script><img src=x onerror=alert(1)>"
    )
    page.fill("#ask textarea", "FROM read_text('/etc/passwd')")
    page.click("#ask .go")
    expect(page.locator("#ask .error")).to_contain_text("is not a file of this manifest")
    assert page.locator("#ask tbody tr").count() == 0 and SECRET not in page.content()


def test_patches_move_with_the_sliders(opened: Any, photographs: Path) -> None:
    page = opened
    page.click("#tab-look")
    page.set_input_files("#look input[type=file]", photographs / "china.jpg")
    lr, hr = (page.locator(f"#look .plate:has(.picture) rect.{role}") for role in ("lr", "hr"))
    expect(lr).to_have_count(8)
    assert page.locator("#look .plate:has(.distance) rect.lr").count() == 8
    assert page.locator("#look .tiles.lr img").count() == 8 and hr.count() > 0
    corners = "r => [r.x.baseVal.value, r.y.baseVal.value]"
    places = f"[...document.querySelectorAll('.plate rect.lr')].map({corners})"
    before = page.evaluate(places)

    def move(name: str, value: str) -> None:
        page.locator(f"#look [name={name}]").fill(value)

    move("k", "3")
    expect(lr).to_have_count(3)
    expect(page.locator("#look .summary")).to_have_text("3 far and 3 near patches")
    assert "--k 3 --min-texture 0.01 --far-texture 0.03" in page.inner_text("#look code")
    move("k", "8")
    expect(lr).to_have_count(8)
    assert page.evaluate(places) == before
    move("far_texture", "0")
    move("min_texture", "0")
    expect(page.locator("#look code")).to_contain_text("--min-texture 0 --far-texture 0")
    expect(page.locator("#look .tiles.lr img[title*='texture 0.00']")).not_to_have_count(0)  # sky
    move("min_separation", "200")
    expect(page.locator("#look .summary")).to_contain_text("fewer than 8")


@pytest.mark.parametrize("opened", [1400, 800, 360], indirect=True)
def test_every_width_and_the_keyboard(opened: Any) -> None:
    page = opened
    width = page.viewport_size["width"]
    page.focus("#tab-upscale")
    for panel in ("ask", "look", "upscale"):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#{panel}")).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        fields = "[...document.querySelectorAll('input, select, textarea')]"
        unnamed = f"{fields}.filter(e => !e.labels.length && !e.ariaLabel).map(e => e.name)"
        assert page.evaluate(unnamed) == []
