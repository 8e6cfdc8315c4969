"""Nothing is computed twice: what a changed parameter, photograph or dictionary costs."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.build import workers
from pipeline.build.plan import plan_build, prepare
from pipeline.config import BuildConfig
from pipeline.stages import images
from pipeline.stages.captions import Captioner
from pipeline.stages.depth import DepthModel
from schemas.manifest import open_manifest
from tests.conftest import run_stages
from tests.support.upstream import save_clip, save_depth_anything
from tests.support.words import WORDS

NAMES = ("china.jpg", "coffee.png", "rocket.jpg", "chelsea.png")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Depth Anything V2 and a CLIP, small, in the upstream formats."""
    folder = tmp_path_factory.mktemp("networks")
    (folder / "depth").mkdir()
    save_depth_anything(folder / "depth")
    save_clip(folder / "clip")
    return {"depth": str(folder / "depth"), "clip": str(folder / "clip")}


@pytest.fixture
def album(photographs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for name in NAMES:
        shutil.copy2(photographs / name, folder / name)
    return folder


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts what was done: photographs decoded and estimated, selected from, patches encoded."""
    done: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str, size: Any = lambda *a: 1) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            done[what] += size(*arguments)
            return original(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(images, "load", "decoded")
    count(DepthModel, "predict_some", "estimated", lambda model, prepared: len(prepared))
    count(workers, "select", "selected")
    count(Captioner, "features", "encoded", lambda captioner, prepared: len(prepared))
    yield done


@pytest.fixture
def build(album: Path, tmp_path: Path, networks: dict[str, str]) -> Any:
    def build(out: str = "patches.parquet", **changes: Any) -> list[dict[str, Any]]:
        plain: dict[str, Any] = {"images": [str(album)], "k": 2, "profile": "test"} | networks
        config = BuildConfig(**(plain | {"out": tmp_path / out} | changes))
        run_stages(config)
        table = ds.dataset([str(f) for f in open_manifest(tmp_path / out).files]).to_table()
        return sorted(table.to_pylist(), key=lambda row: row["patch_id"])

    return build


def dictionary(folder: Path) -> Path:
    path = folder / "mine.txt"
    path.write_text("\n".join(WORDS[:30]))
    return path


def test_from_nothing_every_photograph_is_decoded_once(build: Any, work: Counter[str]) -> None:
    rows = build()
    assert work == {"decoded": 4, "estimated": 4, "selected": 4, "encoded": len(rows)}


def test_a_new_dictionary_costs_no_photograph_and_no_network(
    build: Any, work: Counter[str], tmp_path: Path
) -> None:
    before = build()
    work.clear()
    rows = build(dictionary=dictionary(tmp_path))
    assert not work
    assert {word for row in rows for word in row["words"]} <= set(WORDS[:30])
    assert [r["image"] for r in rows] == [r["image"] for r in before]
    assert rows == build("fresh.parquet", dictionary=dictionary(tmp_path))


def test_a_new_k_selects_from_cached_maps(build: Any, work: Counter[str]) -> None:
    before = build()
    work.clear()
    rows = build(k=3)
    assert work == {"decoded": 4, "selected": 4, "encoded": len(rows) - len(before)}
    assert rows == build("fresh.parquet", k=3)


def test_a_new_clip_reads_the_patches_only(build: Any, work: Counter[str], tmp_path: Path) -> None:
    before = build()
    work.clear()
    save_clip(tmp_path / "other", seed=2)
    rows = build(clip=str(tmp_path / "other"))
    assert work == {"encoded": len(before)}
    assert rows == build("fresh.parquet", clip=str(tmp_path / "other"))
    assert rows != before


def test_a_new_depth_estimator_makes_new_maps(build: Any, work: Counter[str]) -> None:
    build()
    work.clear()
    rows = build(depth="colour-attenuation")
    assert work["estimated"] == work["decoded"] == 4
    assert rows == build("fresh.parquet", depth="colour-attenuation")


def test_a_seed_draws_patches_and_not_the_maps_of_a_network_without_noise(
    build: Any, work: Counter[str]
) -> None:
    build()
    work.clear()
    build(seed=5)  # among equally far patches
    assert work["estimated"] == 0 and work["decoded"] == work["selected"] == 4
    drawn = build(strategy="random")
    assert build(strategy="random", seed=5) != drawn


def test_builds_may_share_a_cache(build: Any, work: Counter[str], tmp_path: Path) -> None:
    cache = tmp_path / "shared"
    build("one.parquet", cache=cache)
    work.clear()
    build("two.parquet", cache=cache, strategy="random", k=1)
    assert work["estimated"] == 0 and work["decoded"] == 4
    build("one.parquet", cache=cache, k=1)  # and neither removes what the other may need
    assert len(list(cache.glob("distance/*/*/*.png"))) == 4


def test_a_damaged_map_is_made_again(build: Any, work: Counter[str], tmp_path: Path) -> None:
    before = build()
    maps = sorted(tmp_path.glob("patches.work/kept/distance/*/*/*.png"))
    maps[0].write_bytes(maps[0].read_bytes()[:100])
    maps[1].write_bytes(b"")
    features = sorted(tmp_path.glob("patches.work/kept/features/*/*/*.safetensors"))
    features[0].write_bytes(features[0].read_bytes()[:-7])
    for part in tmp_path.glob("patches.work/part-*"):
        part.unlink()
    work.clear()
    assert build() == before
    assert work["estimated"] == 2 and 0 < work["encoded"] <= 4


def test_a_lost_photograph_costs_no_other(build: Any, work: Counter[str], album: Path) -> None:
    before = build()
    (album / "coffee.png").unlink()
    work.clear()
    assert build() == [row for row in before if row["image_path"] != "coffee.png"]
    assert not work


def test_a_touched_photograph_is_the_same(
    build: Any, work: Counter[str], album: Path, tmp_path: Path
) -> None:
    before = build()
    names = [file.name for file in open_manifest(tmp_path / "patches.parquet").files]
    os.utime(album / "coffee.png", (0, 0))
    work.clear()
    assert build() == before
    assert not work  # its bytes are compared, and it is not decoded
    assert [file.name for file in open_manifest(tmp_path / "patches.parquet").files] == names


def test_new_photographs_do_not_reshuffle_shards(
    build: Any, album: Path, photographs: Path, tmp_path: Path
) -> None:
    def groups() -> set[frozenset[str]]:
        files = open_manifest(tmp_path / "patches.parquet").files
        tables = (pq.read_table(file, columns=["image_path"]) for file in files)
        return {frozenset(table["image_path"].to_pylist()) for table in tables}

    build(shard_size=2)
    before = groups()
    shutil.copy2(photographs / "astronaut.png", album / "a first name.png")
    build(shard_size=2)
    assert groups() == before | {frozenset(["a first name.png"])}
    build(shard_size=2, k=1)  # nor does a new parameter
    assert groups() == before | {frozenset(["a first name.png"])}


def test_only_failed_photographs_are_tried_again(
    build: Any, work: Counter[str], album: Path, photographs: Path, tmp_path: Path
) -> None:
    for name in ("bad.jpg", "worse.jpg"):
        (album / name).write_bytes(b"no picture")
    (album / "tiny.png").write_bytes((photographs / "coffee.png").read_bytes()[:50])
    before = build()
    work.clear()
    assert build() == before
    assert work == {"decoded": 3}  # all three are still unreadable
    shutil.copy2(photographs / "astronaut.png", album / "bad.jpg")
    (album / "worse.jpg").unlink()
    work.clear()
    rows = build()
    assert work["decoded"] == 2 and work["estimated"] == 1
    catalogue = pq.read_table(tmp_path / "images.parquet").to_pylist()
    assert {row["path"]: row["status"] for row in catalogue} == {
        **dict.fromkeys(NAMES, "ok"), "bad.jpg": "ok", "tiny.png": "unreadable"
    }  # fmt: skip
    assert rows == build("fresh.parquet")


def test_the_work_folder_holds_nothing_stale(build: Any, tmp_path: Path) -> None:
    build()
    build(k=1, depth="colour-attenuation")
    held = {path.name for path in (tmp_path / "patches.work").iterdir()}
    (part,) = open_manifest(tmp_path / "patches.parquet").files
    parts = {name for name in held if name.startswith("part-")}
    assert parts == {part.name, part.name.replace(".parquet", ".images.parquet")}
    # Catalogue, near-duplicates and card of this publication and the one before; near-*.parquet.
    assert "kept" in held and len(held - parts) == 1 + 2 * 3 + 3
    assert not list(tmp_path.glob("patches.work/kept/distance/*"))


def test_dry_run_says_what_is_finished(build: Any, album: Path, tmp_path: Path) -> None:
    build()
    config = BuildConfig(images=[str(album)], k=2, profile="test", out=tmp_path / "patches.parquet")
    text = plan_build(prepare(config)).summary()
    assert "4 photographs, 0 finished, 4 to do in 1 part\n" in text
