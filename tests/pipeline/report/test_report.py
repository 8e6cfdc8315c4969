"""The report, in a real browser and against the manifest read by other means."""

import base64
import io
import math
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.build.cache import Cache
from pipeline.build.fingerprint import fingerprint
from pipeline.query.views import connect
from pipeline.report import overview as report_overview
from pipeline.report import pictures as report_pictures
from pipeline.report.__main__ import main
from pipeline.report.comparison import Comparison, Histogram
from pipeline.report.config import ReportConfig
from pipeline.report.data import WORDS, ReportData
from pipeline.report.page import build_page, figures
from pipeline.stages import depth
from pipeline.storage import StoragePath
from schemas.manifest import PATCHES, open_manifest
from tests.support.bad_rows import bad_pictures, one_table, replaced, with_pictures

pytestmark = pytest.mark.xdist_group("report")  # one browser, one large manifest
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


def derived(manifest: Path, out: Path, replace: str) -> Path:
    """A manifest of other values, with the build's metadata."""
    with connect(manifest) as connection:
        table = connection.sql(f"SELECT * REPLACE ({replace}) FROM patches").to_arrow_table()
    metadata = pq.read_schema(next(manifest.glob("*.parquet"))).metadata
    names = [name for name in PATCHES.names if name in table.schema.names]
    schema = PATCHES.empty_table().select(names).schema.with_metadata(metadata)
    pq.write_table(table.select(names).cast(schema), out)
    return out


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


def test_what_is_not_here_is_said(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.parquet"
    moved = derived(manifest, out, "'elsewhere/' || image_path AS image_path")
    page, _ = build_page(ReportConfig(manifest=moved, pairs=0))
    assert page.count("Not shown: the photograph is not on this machine.") == 7
    assert "no catalogue beside this manifest" in page
    # Another photograph of the same name is not the one that the manifest speaks of.
    changed = derived(manifest, out, "sha256(image_id) AS image_id")
    page, _ = build_page(ReportConfig(manifest=changed, pairs=0))
    assert page.count("Not shown: the photograph has changed since the build.") == 7


def test_patches_stand_in_their_places_where_the_photograph_is_missing(
    manifest: Path, photographs: Path
) -> None:
    with connect(manifest) as connection:
        questions = ReportData(connection, 0)
        first = questions.sample(1)[0]
        ids = questions.patches_of([first["image_id"]])
        patches = list(questions.patches(open_manifest(manifest), ids).values())
    canvas = report_pictures._patches_alone(first, patches)
    original = Image.open(photographs / first["path"]).convert("RGB")
    assert canvas.size == original.size == (first["width"], first["height"])
    for patch in patches:
        box = (patch["x"], patch["y"], patch["x"] + patch["size"], patch["y"] + patch["size"])
        assert canvas.crop(box).tobytes() == original.crop(box).tobytes()


def test_the_answer_against_plain_python(manifest: Path) -> None:
    rows = pq.read_table(manifest, columns=["image_id", "role", "sharpness_56"]).to_pylist()
    means = {
        (i, role): fmean(r["sharpness_56"] for r in rows if (r["image_id"], r["role"]) == (i, role))
        for i, role in {(row["image_id"], row["role"]) for row in rows}
    }
    ids = {i for i, _ in means}
    with connect(manifest) as connection:
        first = ReportData(connection, 0).comparisons()[0]
    assert first.lower == sum(means[i, "lr"] < means[i, "hr"] for i in ids)
    assert first.photographs == len(ids) == sum(*first.ratios.counts.values())
    assert first.far == pytest.approx(median(means[i, "lr"] for i in ids))
    assert first.near == pytest.approx(median(means[i, "hr"] for i in ids))


def test_no_is_said_where_far_is_not_worse(manifest: Path, tmp_path: Path) -> None:
    lines = {
        "yes": "Yes, in 100% of the photographs",
        "no": "No: in 100% of the photographs",
        "open": "not enough to tell",
    }
    textures = {
        "yes": "CASE role WHEN 'lr' THEN 0.01 ELSE 0.05 END",
        "no": "CASE role WHEN 'hr' THEN 0.01 ELSE 0.05 END",
        "open": "CASE WHEN (role = 'lr') = (image_path < 'f') THEN 0.01 ELSE 0.05 END",
    }
    for answer, texture in textures.items():
        values = f"{texture} AS texture, {texture} AS sharpness_56"
        out = derived(manifest, tmp_path / f"{answer}.parquet", values)
        page, _ = build_page(ReportConfig(manifest=out, photographs=0, pairs=0))
        assert [line in page for line in lines.values()] == [name == answer for name in lines]


def test_wilsons_interval() -> None:
    from scipy.stats import binomtest  # takes seconds

    for lower, n in [(14, 18), (0, 10), (7, 7), (400, 1000)]:
        found = Comparison("texture", 0, 0, n, lower, Histogram([], {})).interval
        upstream = binomtest(lower, n).proportion_ci(0.95, method="wilson")
        assert found == pytest.approx((upstream.low, upstream.high), abs=1e-12)


def test_words_against_plain_python(manifest: Path) -> None:
    rows = pq.read_table(manifest, columns=["role", "words"]).to_pylist()
    counted = {
        r: Counter(w for p in rows if p["role"] == r for w in p["words"]) for r in ("lr", "hr")
    }
    total = Counter(p["role"] for p in rows)
    with connect(manifest) as connection:
        words = ReportData(connection, 0).words()
    assert len(words) == 2 * WORDS
    for row in words:
        assert (row["lr"], row["hr"]) == (counted["lr"][row["word"]], counted["hr"][row["word"]])
        assert row["lr_share"] == row["lr"] / total["lr"]
        assert (row["ratio"] > 0) == (row["lr_share"] > row["hr_share"])
    assert [row["ratio"] > 0 for row in words] == [True] * WORDS + [False] * WORDS


def test_the_banner_and_licences_follow_the_recorded_models(manifest: Path, tmp_path: Path) -> None:
    def page_of(depth_model: str, caption: str) -> str:
        values = f"'{depth_model}' AS depth_model, '{caption}' AS caption_model"
        out = derived(manifest, tmp_path / "patches.parquet", values)
        return build_page(ReportConfig(manifest=out, photographs=0, pairs=0))[0]

    trained = page_of("depth-anything-v2-large@0123456789ab", "clip-vit-l-14@0123456789ab")
    assert 'class="banner"' not in trained and "CC-BY-NC-4.0" in trained and "MIT" in trained
    half = page_of("depth-anything-v2-small@0123456789ab", "tiny-clip@built-in")
    assert "untrained" in half and "comes from a formula" not in half
    own = page_of("mine@0123456789ab", "tiny-clip@0123456789ab")  # a folder that bears the name
    assert 'class="banner"' not in own and "unknown" in own


@pytest.fixture(scope="module")
def large(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest 300 times, each time of other photographs."""
    out = tmp_path_factory.mktemp("large") / "patches.parquet"
    with connect(manifest) as connection:
        connection.execute(f"""
            COPY (
                SELECT * REPLACE (md5(patch_id || i) AS patch_id, sha256(image_id || i) AS image_id)
                FROM range(300) AS copies(i), patches
            ) TO '{out}' (
                FORMAT parquet, ROW_GROUP_SIZE 4096,
                STRING_DICTIONARY_PAGE_SIZE_LIMIT 100000000 -- a picture is stored once a row group
            )""")
    return out


def test_a_large_manifest_keeps_to_its_size(large: Path) -> None:
    config = ReportConfig(manifest=large, photographs=12, pairs=60, max_mb=0.3)
    page, detail = build_page(config)
    assert len(page.encode()) <= 300_000 and detail.share < 1
    assert f"{7 * 300:,}</td>" in page  # photographs: counts are of all rows
    assert page.count('class="half lr"') == math.ceil(60 * detail.share) > 3


def test_a_large_manifest_is_not_held_in_memory(large: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from pipeline.report.config import ReportConfig
from pipeline.report.page import build_page
from pipeline.report.pictures import DETAILS
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
page, detail = build_page(ReportConfig(manifest=Path({str(large)!r})))
assert len(page.encode()) <= 8_000_000 and detail is DETAILS[0]
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with connect(large) as connection:
        sizes = connection.sql("SELECT sum(octet_length(image.bytes)) FROM patches").fetchall()
    assert int(done.stdout.split()[-1]) < 350 < 0.6 * sizes[0][0] / 1e6


def test_what_is_said_of_all_rows_reads_no_pixels(manifest: Path, tmp_path: Path) -> None:
    blind = tmp_path / "patches.parquet"
    with connect(manifest) as connection:
        connection.execute(f"COPY (SELECT * EXCLUDE image FROM patches) TO '{blind}'")
    with connect(blind) as connection:
        questions = ReportData(connection, 0)
        assert questions.roles() and questions.models() and questions.statuses()
        assert questions.words() and questions.comparisons() and questions.pairs(3)
        assert questions.histogram("texture", True) and questions.histogram("distance", False)
        photographs = questions.sample(2)
        assert questions.patches_of([photograph["image_id"] for photograph in photographs])


def test_histograms_count_every_patch(manifest: Path) -> None:
    rows = pq.read_table(manifest, columns=["role", "distance", "texture"]).to_pylist()
    with connect(manifest) as connection:
        questions = ReportData(connection, 0)
        for column, logarithmic in (("distance", False), ("texture", True)):
            histogram = questions.histogram(column, logarithmic)
            assert histogram is not None
            for role, counts in histogram.counts.items():
                values = [row[column] for row in rows if row["role"] == role]
                inside = np.clip(values, histogram.edges[0], histogram.edges[-1])
                expected, _ = np.histogram(inside, histogram.edges)
                assert sum(counts) == len(values)
                # DuckDB counts a value on an edge below it, numpy above it.
                assert abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 2


def test_pairs_are_of_one_photograph_and_differ(manifest: Path) -> None:
    with connect(manifest) as connection:
        questions = ReportData(connection, 3)
        pairs = questions.pairs(20)
        ids = [pair[role] for pair in pairs for role in ("lr", "hr")]
        patches = questions.patches(open_manifest(manifest), ids)
    for pair in pairs:
        assert {patches[pair[role]]["image_id"] for role in ("lr", "hr")} == {pair["image_id"]}
        assert [patches[pair[role]]["role"] for role in ("lr", "hr")] == ["lr", "hr"]
    assert len({pair["image_id"] for pair in pairs[:7]}) == 7  # every photograph before any again
    assert len({pair["lr"] for pair in pairs}) == len({pair["hr"] for pair in pairs}) == 20


def test_the_seed_decides_what_is_drawn(large: Path) -> None:
    def drawn(seed: int) -> list[str]:
        config = ReportConfig(manifest=large, photographs=4, pairs=4, seed=seed)
        page, _ = build_page(config)
        assert f"seed {seed}" in page
        return re.findall(r'data-name="[^"]*"|src="[^"]*"', page)

    assert drawn(1) == drawn(1) != drawn(2)


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


def test_kept_distance_maps_are_used(manifest: Path, photographs: Path, tmp_path: Path) -> None:
    """A network's map is shown where the build kept it, the network itself being elsewhere."""
    out = derived(manifest, tmp_path / "patches.parquet", "'away@0123456789ab' AS depth_model")
    with connect(out) as connection:
        (first,) = ReportData(connection, 0).sample(1)
    page, _ = build_page(ReportConfig(manifest=out, photographs=1, pairs=0))
    assert "the distance map is not cached, and away@0123456789ab is not here" in page
    folder = StoragePath(str(tmp_path / "patches.work" / "kept"))
    cache = Cache(folder, fingerprint(depth.VERSION, "away@0123456789ab", None), "")
    half = np.zeros((first["height"], first["width"]), np.float32)
    half[:, first["width"] // 2 :] = 1
    cache.put_distance(first["image_id"], half)
    page, _ = build_page(ReportConfig(manifest=out, photographs=1, pairs=0))
    assert "Not shown" not in page
    src = re.search(r'alt="Distance map[^"]*" src="data:image/webp;base64,([^"]*)"', page)
    assert src
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(src[1]))).convert("L"), dtype=int)
    assert shown[:, :20].max() < 30 and shown[:, -20:].min() > 200


def test_manifests_with_gaps(manifest: Path, tmp_path: Path) -> None:
    with connect(manifest) as connection:
        connection.execute(
            f"COPY (FROM patches WHERE role = 'hr') TO '{tmp_path / 'near.parquet'}'"
        )
    page, _ = build_page(ReportConfig(manifest=tmp_path / "near.parquet"))
    assert "nothing to compare" in page and "has no parameters" in page
    given = derived(manifest, tmp_path / "given.parquet", "NULL AS distance, 'none' AS depth_model")
    page, _ = build_page(ReportConfig(manifest=given))
    assert "none" in page
    assert figures(None) == "\N{EN DASH}" and figures(0.012345) == "0.0123"
    assert figures(12345.6) == "12,346"


def test_mistakes_get_one_line(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, narrow = tmp_path / "empty.parquet", tmp_path / "narrow.parquet"
    with connect(manifest) as connection:
        connection.execute(f"COPY (FROM patches WHERE false) TO '{empty}'")
        connection.execute(f"COPY (SELECT role, words FROM patches) TO '{narrow}'")
    for argv, message in [
        (["--manifest", str(tmp_path / "nowhere.parquet")], "no manifest there"),
        (["--manifest", str(empty)], "it has no patch"),
        (["--manifest", str(narrow)], "column 'patch_id' is missing"),
        (
            ["--manifest", str(manifest), "--max-mb", "0.01", "--pairs", "2", "--photographs", "1"],
            "the page needs at least",
        ),
        (["--manifest", str(manifest), "--images", "/nowhere"], "no such folder"),
    ]:
        assert main([*argv, "--out", str(tmp_path / "page.html")]) == 1
        lines = [
            line for line in capsys.readouterr().err.splitlines() if "photographs:" not in line
        ]
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], lines
    assert not (tmp_path / "page.html").exists()


def test_rows_that_cannot_be_drawn_are_counted_and_the_page_is_made(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of bad picture, shown as a cross, and values that curated manifests may lack."""
    table = one_table(manifest)
    lr, hr = ([i for i, x in enumerate(table["role"].to_pylist()) if x == r] for r in ("lr", "hr"))
    small, large = (table["image"][rows[0]].as_py()["bytes"] for rows in (lr, hr))
    kinds = list(bad_pictures(small, large).values())
    bad = with_pictures(
        manifest, tmp_path / "m.parquet", dict(zip(lr + hr, kinds * 4, strict=False))
    )
    odd: dict[str, dict[int, Any]] = {
        "role": {2: None, 3: "far"}, "words": {4: None, 5: [], 6: [None]}, "caption": {7: None},
        "distance": {8: math.nan, 9: None, 10: math.inf}, "rank": {11: None}, "x": {12: None},
        "size": {13: None, 14: 60_000}, "texture": {15: math.nan, 16: None}, "split": {17: None},
        "image_id": {18: None}, "patch_id": {19: None}, "depth_model": {20: None},
        "image_path": {21: None}, "image_width": {22: None}, "word_scores": {23: [math.nan] * 24},
    }  # fmt: skip
    table = pq.read_table(bad)
    for name, values in odd.items():
        table = replaced(table, name, values)
    pq.write_table(table, bad)
    monkeypatch.chdir(tmp_path)  # the photographs are not here, so that patches are drawn alone
    argv = ["--manifest", "m.parquet", "--out", "r.html", "--photographs", "3", "--pairs", "9"]
    assert main(argv) == 0
    with connect(bad) as connection:
        contact_sheet = report_overview.contact_sheet(connection)
    assert (np.asarray(contact_sheet) == (160, 160, 160)).all(2).mean() > 0.1


@pytest.mark.parametrize("by", ["the client", "another thread"])
def test_an_interrupted_query_stops_the_command(
    by: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """DuckDB's client makes a RuntimeError of Ctrl-C, its engine an InterruptException."""

    def slow(data: ReportData) -> None:
        if by == "the client":
            raise RuntimeError("Query interrupted")
        threading.Timer(0.2, data.connection.interrupt).start()
        # A minute, if nothing ends it.
        data.connection.sql(
            "SELECT sum(a.i * b.i) FROM range(1000000) a(i), range(30000) b(i)"
        ).show()

    monkeypatch.setattr(ReportData, "roles", slow)
    out = tmp_path / "page.html"
    assert main(["--manifest", str(manifest), "--out", str(out)]) == 130
    assert capsys.readouterr().err.startswith("stopped; ") and not out.exists()
