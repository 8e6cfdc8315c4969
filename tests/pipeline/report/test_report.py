"""The command, and manifests that lack something, are large or are damaged."""

import base64
import io
import math
import re
import subprocess
import sys
import threading
from pathlib import Path
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
from pipeline.report.config import ReportConfig
from pipeline.report.data import ReportData
from pipeline.report.page import build_page, figures
from pipeline.stages import depth
from pipeline.storage import StoragePath
from schemas.manifest import open_manifest
from tests.support.bad_rows import bad_pictures, one_table, replaced, with_pictures
from tests.support.parts import derived


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


def test_the_seed_decides_what_is_drawn(large: Path) -> None:
    def drawn(seed: int) -> list[str]:
        config = ReportConfig(manifest=large, photographs=4, pairs=4, seed=seed)
        page, _ = build_page(config)
        assert f"seed {seed}" in page
        return re.findall(r'data-name="[^"]*"|src="[^"]*"', page)

    assert drawn(1) == drawn(1) != drawn(2)


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
