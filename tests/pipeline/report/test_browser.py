"""The report in a real browser."""

import re
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.report import pictures as report_pictures
from pipeline.report.__main__ import main
from tests.support.parts import derived

HOSTILE = """a"b'<script>document.title='taken'</script><img src=x onerror=alert(1)>.png"""


@pytest.fixture(scope="module")
def page_file(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["--manifest", str(manifest), "--out", str(out)]) == 0
    return out


def opened(browser: Any, file: Path, **context: Any) -> tuple[Any, list[str]]:
    """A loaded page, and what it asked for or complained of."""
    page, noise = browser.new_context(**context).new_page(), []
    page.set_default_timeout(500_000)
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: None if r.url.startswith("data:") else noise.append(r.url))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    assert noise.pop(0) == file.as_uri()
    return page, noise


def test_it_loads_by_itself_and_shows_every_picture(browser: Any, page_file: Path) -> None:
    page, noise = opened(browser, page_file, java_script_enabled=True)
    assert noise == []
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length"
    assert page.evaluate(broken) == 0
    # The strip, the pairs (28 can be drawn of 7 photographs, 24 are), photographs with their maps.
    assert page.evaluate("document.images.length") == 2 * 6 + 2 * 24 + 2 * 7
    assert page.locator("svg rect.lr:not(.ground)").count() == 2 * 4 * 7
    assert "untrained" in page.locator(".banner").inner_text()
    assert page.evaluate("document.querySelectorAll('[id]').length") == page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    )


def test_a_page_cannot_reach_the_network(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
        assert page.evaluate("u => fetch(u).then(() => 'reached', () => 'refused')", address) == (
            "refused"
        )
        page.evaluate("u => { new Image().src = u }", address)
        page.evaluate("u => navigator.sendBeacon(u, '1')", address)
        with pytest.raises(TimeoutError):
            server.accept()  # nobody came


def shown(page: Any) -> list[tuple[str, str]]:
    return page.evaluate(
        "[...document.querySelectorAll('.card')].filter(c => c.offsetParent)"
        ".map(c => [c.dataset.name, c.dataset.lr])"
    )


def test_filters_by_keyboard(browser: Any, page_file: Path, manifest: Path) -> None:
    page, noise = opened(browser, page_file)
    everything = len(shown(page))
    page.focus("input[name=name]")
    page.keyboard.type("CHELSEA")
    assert {name for name, _ in shown(page)} == {"chelsea.png"}
    page.keyboard.press("Tab")  # the word
    page.keyboard.type("no such word")
    assert shown(page) == []
    assert page.locator("output").inner_text() == f"0 of {everything} shown"
    for key in ("Tab", "Tab", "Tab", "Enter"):  # role, status, Clear
        page.keyboard.press(key)
    from playwright.sync_api import expect

    # Not `wait_for_function`: it polls by `eval`, which the page's own policy forbids.
    expect(page.locator(".card[hidden]")).to_have_count(0)
    assert len(shown(page)) == everything
    patches = pq.read_table(manifest, columns=["role", "words", "image_path"]).to_pylist()
    where: dict[str, dict[str, set[str]]] = {"lr": {}, "hr": {}}  # photographs by role and word
    for patch in patches:
        for word in patch["words"]:
            where[patch["role"]].setdefault(word, set()).add(patch["image_path"])
    near_alone = {word: names - where["lr"].get(word, set()) for word, names in where["hr"].items()}
    word = next(word for word in sorted(where["lr"]) if near_alone.get(word))
    page.focus("input[name=word]")
    page.keyboard.type(word)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # far
    has_it = [names for other, names in where["lr"].items() if word in other]  # "sky": "blue sky"
    assert {name for name, _ in shown(page)} == set.union(*has_it)
    assert page.locator(".half.hr:visible").count() == 0
    assert noise == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_and_both_themes(browser: Any, page_file: Path, scheme: str) -> None:
    page, _ = opened(
        browser, page_file, viewport={"width": 360, "height": 740}, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(252, 251, 248)", "rgb(21, 20, 18)"
    assert page.evaluate(ground) == (light if scheme == "light" else dark)
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert page.evaluate(ground) == (dark if scheme == "light" else light)
    page.keyboard.press("Enter")
    assert page.evaluate(ground) == (light if scheme == "light" else dark)


def test_keyboard_focus_print_and_no_script(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file, reduced_motion="reduce")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    page.emulate_media(media="print")
    assert page.locator("nav:visible, .filters:visible").count() == 0
    page, noise = opened(browser, page_file, java_script_enabled=False)
    assert page.locator(".filters:visible").count() == 0  # they would do nothing
    assert page.locator(".card:visible").count() == 24 + 7 and noise == []


def test_names_and_words_are_text_whatever_they_hold(
    browser: Any, manifest: Path, tmp_path: Path
) -> None:
    quoted = HOSTILE.replace("'", "''")
    words = "['<b>bold</b>', '$x$ & \"y\"', '</script>', '雪'] || words[:20]"
    hostile = derived(
        manifest,
        tmp_path / "patches.parquet",
        f"'{quoted}' AS image_path, '{quoted}' AS depth_model,"
        f" CASE role WHEN 'lr' THEN {words} ELSE words END AS words",
    )
    out = tmp_path / "page.html"
    assert main(["--manifest", str(hostile), "--out", str(out), "--photographs", "2"]) == 0
    page, noise = opened(browser, out)
    assert noise == [] and page.title().startswith("Far and near")
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.querySelectorAll('b:not(.reasons b)').length") == 0
    assert page.locator("h3.name").first.inner_text() == HOSTILE
    assert "<b>bold</b>" in page.locator("#pairs .caption").first.inner_text()
    drawn = page.locator("#words svg text").all_text_contents()
    assert {"<b>bold</b>", '$x$ & "y"', "</script>"} <= {text.strip() for text in drawn}
    page.locator("input[name=name]").fill(HOSTILE)
    assert page.locator(".card:visible").count() == 24 + 2


def test_colours_can_be_read_in_both_themes() -> None:
    css = Path(report_pictures.__file__).with_name("templates") / "report.css"
    themes = re.findall(r"(--paper: .*?)}", css.read_text(), re.DOTALL)[:3]
    assert len(themes) == 3 and themes[1].split() == themes[2].split()  # chosen, and the system's
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        for text in ("ink", "quiet", "link"):
            for ground in ("paper", "plate"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["ink"], colours["warn"]) >= 4.5
        for mark in ("far", "near"):
            assert contrast(colours[mark], colours["paper"]) >= 3, mark


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)
