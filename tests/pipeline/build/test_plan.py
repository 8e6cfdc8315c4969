"""Builds: what ends in the manifest, what is done again, and what bad photographs do."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lasr.errors import UserError
from pipeline.build import workers
from pipeline.build.models import load_models
from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from schemas.manifest import PATCHES, open_manifest, patch_id
from tests.conftest import run_stages
from tests.support.upstream import save_clip
from tests.support.words import WORDS


def config(images: Path, out: Path, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {"images": [str(images)], "out": out, "profile": "test", "k": 2}
    return BuildConfig(**(plain | changes))


def rows(out: Path) -> list[dict[str, Any]]:
    table = ds.dataset([str(f) for f in open_manifest(out).files]).to_table()
    return sorted(table.to_pylist(), key=lambda row: row["patch_id"])


def catalogue(out: Path) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in pq.read_table(out.parent / "images.parquet").to_pylist()}


@pytest.fixture
def album(photographs: Path, tmp_path: Path) -> Path:
    """Four of the photographs, in a folder that a test may change."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("china.jpg", "coffee.png", "rocket.jpg", "chelsea.png"):
        shutil.copy2(photographs / name, folder / name)
    return folder


def test_every_row_says_what_its_picture_is(manifest: Path, photographs: Path) -> None:
    table = rows(manifest)
    assert {row["role"] for row in table} == {"lr", "hr"}
    assert len({row["patch_id"] for row in table}) == len(table)
    for row in table:
        pixels = np.asarray(Image.open(photographs / row["image_path"]).convert("RGB"))
        assert (row["image_width"], row["image_height"]) == pixels.shape[1::-1]
        x, y, size = row["x"], row["y"], row["size"]
        stored = cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
        expected = pixels[y : y + size, x : x + size]
        # rocket.jpg is Adobe RGB: its colours move on their way to sRGB.
        bound = 80 if row["image_path"] == "rocket.jpg" else 0
        assert np.abs(stored.astype(int) - expected).max() <= bound
        assert row["patch_id"] == patch_id(row["image_id"], row["role"], x, y, size)
        assert row["caption"] == ", ".join(row["words"]) and len(row["words"]) == 24
        assert row["word_scores"] == sorted(row["word_scores"], reverse=True)
        assert row["depth_model"] == "scene-layout@built-in"


def test_rows_of_a_photograph_stand_together_lr_first(manifest: Path) -> None:
    for file in open_manifest(manifest).files:
        order = pq.read_table(file, columns=["image_id", "role", "rank"]).to_pylist()
        keys = [(row["image_id"], row["role"] == "hr", row["rank"]) for row in order]
        blocks = list(dict.fromkeys(key[0] for key in keys))
        assert keys == sorted(keys, key=lambda key: (blocks.index(key[0]), key[1], key[2]))


def test_totals_reconcile(manifest: Path) -> None:
    table, found = rows(manifest), catalogue(manifest)
    assert len(found) == 7
    for path, entry in found.items():
        for role in ("lr", "hr"):
            own = [r for r in table if r["image_path"] == path and r["role"] == role]
            assert entry[f"n_{role}"] == len(own)


def test_bad_photographs_are_recorded_and_stop_nothing(album: Path, tmp_path: Path) -> None:
    (album / "empty.png").touch()
    (album / "text.jpg").write_text("no picture")
    (album / "cut.jpg").write_bytes((album / "china.jpg").read_bytes()[:20_000])
    Image.new("RGB", (500, 200)).save(album / "low.png")
    shutil.copy(album / "china.jpg", album / "zwilling.jpg")
    out = tmp_path / "patches.parquet"
    run_stages(config(album, out, shard_size=2))
    status = {path: entry["status"] for path, entry in catalogue(out).items()}
    assert status == {
        "china.jpg": "ok", "coffee.png": "ok", "rocket.jpg": "ok", "chelsea.png": "ok",
        "empty.png": "unreadable", "text.jpg": "unreadable", "cut.jpg": "unreadable",
        "low.png": "too_small", "zwilling.jpg": "duplicate",
    }  # fmt: skip
    assert {r["image_path"] for r in rows(out)} == {p for p, s in status.items() if s == "ok"}
    assert catalogue(out)["zwilling.jpg"]["error"] == "same bytes as china.jpg"
    assert len({r["patch_id"] for r in rows(out)}) == len(rows(out))
    for file in open_manifest(out).files:  # parts that lost a duplicate are like the others
        assert pq.read_schema(file).equals(pq.read_schema(open_manifest(out).files[0]), True)


def test_nothing_usable_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "photos" / "a.png")
    with pytest.raises(UserError, match=r"none of 1 photograph gave .*1 too_small.*100x100"):
        run_stages(config(tmp_path / "photos", tmp_path / "patches.parquet"))
    assert not (tmp_path / "patches.parquet").exists()


def test_a_second_run_does_nothing(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.parquet"
    assert len(run_stages(config(album, out, shard_size=2))) == 2
    before = rows(out)
    assert run_stages(config(album, out, shard_size=2)) == []
    shutil.rmtree(out)  # a deleted manifest comes back from the finished parts
    assert run_stages(config(album, out, shard_size=2)) == []
    assert rows(out) == before


def test_new_and_changed_photographs_cost_only_themselves(
    album: Path, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "patches.parquet"
    made = set(run_stages(config(album, out, shard_size=1)))
    shutil.copy2(photographs / "astronaut.png", album)
    assert len(run_stages(config(album, out, shard_size=1))) == 1
    (album / "coffee.png").unlink()
    Image.open(photographs / "flower.jpg").save(album / "rocket.jpg", quality=90)
    assert len(set(run_stages(config(album, out, shard_size=1))) - made) == 1
    assert {r["image_path"] for r in rows(out)} == {
        "astronaut.png", "chelsea.png", "china.jpg", "rocket.jpg"
    }  # fmt: skip
    fresh = tmp_path / "fresh" / "patches.parquet"
    run_stages(config(album, fresh))
    assert rows(fresh) == rows(out)


def test_a_build_cut_short_ends_like_an_undisturbed_one(album: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "patches.parquet", tmp_path / "other" / "patches.parquet"
    build = plan_build(prepare(config(album, out, shard_size=2)))
    build_shard(build.job, build.plan.to_do[0])  # … and here it was killed
    (build.job.config.work.path / ".part-x.parquet.tmp").write_bytes(b"half a part")
    assert len(run_stages(config(album, out, shard_size=2))) == 1
    run_stages(config(album, other, shard_size=2))
    assert rows(out) == rows(other)
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp" or p.name == "publishing"]


def test_parameters_that_touch_rows_rebuild_and_others_do_not(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.parquet"
    run_stages(config(album, out))
    assert run_stages(config(album, out, workers=1, device="cpu")) == []
    assert len(run_stages(config(album, out, k=1))) == 1
    assert len(rows(out)) == 8
    words = tmp_path / "mine.txt"
    words.write_text("\n".join(WORDS[:24]))
    assert len(run_stages(config(album, out, k=1, dictionary=words))) == 1
    assert {word for row in rows(out) for word in row["words"]} <= set(words.read_text().split())


def test_rows_do_not_depend_on_how_the_work_is_cut(album: Path, tmp_path: Path) -> None:
    cuts = {}
    for size in (1, 3, 100):
        out = tmp_path / str(size) / "patches.parquet"
        run_stages(config(album, out, shard_size=size, strategy="random", seed=3))
        cuts[size] = rows(out)
    assert cuts[1] == cuts[3] == cuts[100]


def test_one_photograph_that_breaks_the_depth_network_is_alone_in_failing(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It hands photographs to `predict` as they are.
    changes = {"depth": "colour-attenuation"}
    build = plan_build(prepare(config(album, tmp_path / "patches.parquet", **changes)))
    models = load_models(build.job)

    def predict(prepared: Sequence[np.ndarray]) -> list[np.ndarray]:
        if any(p.shape[0] == 300 for p in prepared):  # chelsea
            raise RuntimeError("out of memory")
        return list(prepared)

    monkeypatch.setattr(models, "_depth", replace(models.depth, predict=predict, batch=3))
    made = [build_shard(build.job, shard) for shard in build.plan.to_do]
    finish(build, made)
    found = catalogue(tmp_path / "patches.parquet")
    assert found["chelsea.png"]["error"] == "depth: RuntimeError: out of memory"
    status = {path: entry["status"] for path, entry in found.items()}
    assert status.pop("chelsea.png") == "failed" and set(status.values()) == {"ok"}


def test_a_failure_names_its_stage_and_leaves_one_traceback(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Exception):
        """A type that no other test raises."""

    def fail(*arguments: object) -> None:
        raise Broken("on purpose")

    monkeypatch.setattr(workers, "select", fail)
    caplog.set_level("DEBUG", workers.log.name)
    with pytest.raises(UserError, match=r"none of 4 .*most often: select: Broken: on purpose"):
        run_stages(config(album, tmp_path / "patches.parquet"))
    warned = [r for r in caplog.records if (r.name, r.levelname) == (workers.log.name, "WARNING")]
    assert len(warned) == 4
    assert caplog.text.count("Traceback") == 1 and "in fail" in caplog.text


def test_weights_are_located_once(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their digests cost seconds; workers get the result."""
    save_clip(tmp_path / "clip")
    prepared = prepare(config(album, tmp_path / "patches.parquet", clip=str(tmp_path / "clip")))
    monkeypatch.setattr("lasr.weights.locate.combined", lambda *_: pytest.fail("hashed again"))
    build = plan_build(prepared)
    finish(build, [build_shard(build.job, shard) for shard in build.plan.to_do])
    assert len(rows(tmp_path / "patches.parquet")) == 16


def test_columns_are_those_of_the_contract(manifest: Path) -> None:
    assert open_manifest(manifest).schema.names == PATCHES.names
    assert open_manifest(manifest).metadata["parameters"]["k"] == 4
