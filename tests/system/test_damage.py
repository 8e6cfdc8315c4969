"""Flipped bits, cut, empty, missing files: noticed, named and made again, or without effect.

Every kind of file that is kept has one bit changed at many positions. A reader then gives what was
written, or says that the file is damaged: never anything else.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lasr.errors import UserError
from pipeline.build.cache import Cache
from pipeline.build.parts import FAULTS, read_part
from pipeline.config import BuildConfig
from pipeline.storage import StoragePath
from schemas.manifest import ManifestError, open_manifest
from tests.conftest import run_stages
from tests.support.damage import flips, spoil
from tests.support.words import WORDS
from trainer import checkpoint
from trainer.data.reader import COLUMNS, BadRow, Reader
from trainer.data.skipped import trim_lines
from trainer.evaluate.scores import Cache as ScoreCache


def tally(content: bytes, number: int, read: Callable[[bytes], Any]) -> Counter[str]:
    """How often a changed file was noticed (None, or an error) or read as it was written."""
    expected = read(content)
    assert expected is not None
    ended = Counter[str]()
    for changed in flips(content, number):
        found = read(changed)
        assert found is None or found == expected, "read as something else"
        ended["noticed" if found is None else "the same"] += 1
    return ended


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small photographs and a manifest of them in three parts."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        coarse = Image.fromarray(rng.integers(0, 255, (30, 34, 3), np.uint8))
        coarse.resize((272, 240), Image.Resampling.BICUBIC).save(folder / "photos" / f"{name}.png")
    (folder / "words.txt").write_text("\n".join(WORDS[:30]))
    assert len(run_stages(config(folder))) == 3
    return folder


def config(folder: Path, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {
        "images": [str(folder / "photos")], "out": folder / "patches.parquet", "shard_size": 1,
        "profile": "test", "k": 1, "dictionary": folder / "words.txt", "workers": 1,
    }  # fmt: skip
    return BuildConfig(**(plain | changes))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    return folder


def one_part(folder: Path) -> tuple[Path, Path]:
    """The two files of the first part in the work folder."""
    entries = sorted((folder / "patches.work").glob("part-*.images.parquet"))[0]
    return entries.with_name(entries.name.replace(".images", "")), entries


@pytest.mark.parametrize("which", [0, 1])
def test_every_bit_of_a_part_counts(copy: Path, which: int) -> None:
    """Header, pages, their headers, statistics, metadata, the digest itself."""
    path = one_part(copy)[which]
    work, name = StoragePath(str(path.parent)), path.name.split(".")[0]

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        try:
            return read_part(work, name, in_full=True)[1].to_pylist()
        except FAULTS:
            return None

    assert tally(path.read_bytes(), 400, read)["the same"] == 0


def test_the_trainer_never_reads_other_rows(copy: Path) -> None:
    manifest = copy / "patches.parquet"
    path = open_manifest(manifest).files[1]

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        try:
            reader = Reader(open_manifest(manifest, COLUMNS), 1000)
            rows = list(reader.read(list(range(len(reader.chunk_of)))))
            for row in rows:
                if isinstance(row, BadRow):
                    assert "--verify" in row.reason or "damaged part" in row.reason
                    return None
            return [(row[0].tobytes(), row[1]) for row in rows if not isinstance(row, BadRow)]
        except ManifestError as error:
            assert path.name in str(error) and "--verify" in str(error)
            return None

    ended = tally(path.read_bytes(), 200, read)
    assert ended["noticed"] > ended["the same"]  # the same: bits of columns that it does not read


def test_cached_maps_and_features_are_read_as_they_were_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(StoragePath(str(tmp_path)), "d", "f")
    rng, image_id = np.random.default_rng(0), "ab" * 32
    cache.put_distance(image_id, rng.random((20, 30)).astype(np.float32))
    cache.put_features(image_id, {"p": rng.random(16).astype(np.float32)})
    for kind in ("distance", "features"):
        (path,) = (tmp_path / kind).rglob(f"{image_id}.*")

        def read(content: bytes, path: Path = path, kind: str = kind) -> Any:
            path.write_bytes(content)
            if kind == "distance":
                found = cache.distance(image_id)
                return None if found is None else found.tobytes()
            features = cache.patch_features(image_id, 16)
            return {k: v.tobytes() for k, v in features.items()} or None

        ended = tally(path.read_bytes(), 400, read)
        assert ended["noticed"] > 10 * ended["the same"]  # the same: bits of the digest's mark
        assert f"{path}: damaged" in caplog.text


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8,), np.float32), ((16, 1), np.float32), ((16,), np.float64)]
)
def test_features_of_another_shape_are_computed_again(
    tmp_path: Path, shape: tuple[int, ...], dtype: type
) -> None:
    cache = Cache(StoragePath(str(tmp_path)), "d", "f")
    feature = np.ones(shape, dtype)
    cache.put_features("ab" * 32, {"p": feature / np.linalg.norm(feature)})
    assert cache.patch_features("ab" * 32, 16) == {}


@pytest.mark.parametrize("way", ["entry", "shelf", "model"])
def test_a_folder_or_file_in_the_way_of_an_entry_is_moved_aside(tmp_path: Path, way: str) -> None:
    cache, image_id = Cache(StoragePath(str(tmp_path)), "d", "f"), "ab" * 32
    path = tmp_path / "distance" / "d" / "ab" / f"{image_id}.png"
    wrong = {"entry": path, "shelf": path.parent, "model": path.parent.parent}[way]
    if way == "entry":
        (wrong / "inside").mkdir(parents=True)
        (wrong / "inside" / "thesis").write_bytes(b"precious")
    else:
        wrong.parent.mkdir(parents=True)
        wrong.write_bytes(b"precious")
    assert cache.distance(image_id) is None
    written = cache.put_distance(image_id, np.zeros((4, 4), np.float32))
    assert np.array_equal(cache.distance(image_id), written)
    aside = wrong.with_name(f"{wrong.name}.aside")
    aside = aside / "inside" / "thesis" if way == "entry" else aside
    assert aside.read_bytes() == b"precious"


def test_a_checkpoint_is_resumed_as_it_was_written_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = torch.Generator().manual_seed(0)
    for step in (1, 2):
        state = {"w": torch.randn(40, 30, generator=rng), "b": torch.full((5,), float(step))}
        checkpoint.save(tmp_path, step, sr=state)
    path = tmp_path / "checkpoint.pt"

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        caplog.clear()
        state = checkpoint.load(tmp_path)
        assert state is not None
        if state["step"] == 1:
            assert "resuming from checkpoint.previous.pt, after step 1" in caplog.text
            return None
        return [value.numpy().tobytes() for value in state["sr"].values()]

    ended = tally(path.read_bytes(), 300, read)
    assert ended["noticed"] > 10 * ended["the same"]


def test_a_checkpoint_without_a_digest_is_checked_by_its_checksums(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 3, "sr": {"w": torch.arange(4000.0)}}, path)

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        try:
            state = checkpoint.load(tmp_path)
            return state and state["sr"]["w"].numpy().tobytes()
        except UserError:
            return None

    assert tally(path.read_bytes(), 200, read)["noticed"] > 100


def test_cached_scores_are_used_as_they_were_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "scores.jsonl"
    cache = ScoreCache(path)
    cache.add("a", {"score": 27.125, "device": "CPU"})
    cache.add("b", {"score": 0.5, "device": "CPU"})

    def read(content: bytes) -> Any:
        path.write_bytes(content)
        return ScoreCache(path).get("a")

    content = path.read_bytes()
    ended = tally(content[: content.index(b"\n") + 1], 300, read)
    assert ended["the same"] == 0 and "damaged line" in caplog.text
    path.write_bytes(b'{"key": "old", "score": 27.125, "device": "CPU"}\n' + content)  # 0.1.0
    assert ScoreCache(path).get("old") == {"score": 27.125, "device": "CPU"}


@pytest.mark.parametrize("how", ["flip", "missing", "cut", "empty", "folder"])
@pytest.mark.parametrize("which", ["rows", "catalogue"])
def test_a_rerun_makes_a_damaged_part_again(
    copy: Path, built: Path, which: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = one_part(copy)[which == "catalogue"]
    spoil(path, how)
    made = run_stages(config(copy))
    assert len(made) == 1
    if (which, how) != ("catalogue", "missing"):  # then it looks as if a kill had been there
        assert f"{path.name.split('.')[0]}: damaged (" in caplog.text
    assert rows(copy) == rows(built)
    assert run_stages(config(copy)) == []


def rows(folder: Path) -> Any:
    """All rows of a manifest; the names of its files differ where the folder is another."""
    found = [row for f in open_manifest(folder / "patches.parquet").files for row in read(f)]
    return sorted(found, key=lambda row: row["patch_id"]), read(folder / "images.parquet")


def read(file: Path) -> Any:
    return pq.read_table(file).to_pylist()


def test_a_changed_bit_that_left_no_trace(copy: Path, built: Path) -> None:
    """With the time of change as before: found by --verify, and before it is published anew."""
    path, _ = one_part(copy)
    spoil(path, "silent flip")
    assert len(run_stages(config(copy, verify=True))) == 1
    assert rows(copy) == rows(built)

    spoil(one_part(copy)[0], "silent flip")
    shutil.rmtree(copy / "patches.parquet")
    assert len(run_stages(config(copy))) == 1
    assert rows(copy) == rows(built)


def test_a_damaged_part_is_not_reused_for_other_words(copy: Path, built: Path) -> None:
    spoil(one_part(copy)[0], "silent flip")
    words = copy / "words.txt"
    words.write_text(words.read_text() + "\nnew")
    run_stages(config(copy))
    fresh = built.parent / "fresh-words"
    shutil.copytree(copy, fresh, ignore=shutil.ignore_patterns("patches*", "*.parquet"))
    run_stages(config(fresh))
    assert rows(copy) == rows(fresh)
    shutil.rmtree(fresh)


def test_other_content_has_another_name(copy: Path) -> None:
    """A reader that knows an old name finds the old rows there, or nothing."""
    manifest = copy / "patches.parquet"
    old = {file.name: read(file) for file in open_manifest(manifest).files}
    held = open(open_manifest(manifest).files[0], "rb")  # noqa: SIM115
    shutil.copy(copy / "photos" / "a.png", copy / "photos" / "0.png")  # a twin, which is first
    words = copy / "words.txt"
    words.write_text("\n".join(reversed(words.read_text().splitlines())))
    run_stages(config(copy, shard_size=2))
    new = {file.name: read(file) for file in open_manifest(manifest).files}
    assert all(old[name] == new[name] for name in old.keys() & new.keys())
    assert not old.keys() & new.keys()
    with held:
        assert pq.read_table(held).to_pylist() == old[min(old)]


def test_leftovers_of_another_kind_are_no_obstacle(copy: Path, built: Path) -> None:
    work = copy / "patches.work"
    (work / "publishing").mkdir()
    (work / "lock").write_bytes(b"")
    (work / "lock.json").write_text('{"host": [], "pid": "x", "si')
    run_stages(config(copy))
    assert rows(copy) == rows(built)
    (work / "part-0123456789abcdef.parquet" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds part-0123456789abcdef\.parquet, which no build"):
        run_stages(config(copy))


@pytest.mark.parametrize("how", ["empty", "cut", "flip", "missing"])
@pytest.mark.parametrize("name", ["images.parquet", "duplicates.parquet"])
def test_damaged_tables_beside_a_manifest_are_written_again(
    copy: Path, built: Path, name: str, how: str
) -> None:
    path = copy / name
    spoil(path, how)
    damaged = path.read_bytes() if path.exists() else b""
    assert run_stages(config(copy)) == []
    assert read(path) == read(built / name)
    aside = path.with_name(f"{name}.damaged")
    if how in ("cut", "empty"):  # its mark is lost: it may be anybody's, and is not deleted
        assert aside.read_bytes() == damaged


def test_a_statistic_is_not_changed_by_a_line_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "stats.jsonl"
    good = [json.dumps({"step": step, "total": step / 7}).encode() for step in range(1, 6)]
    garbage = [b"\xff\xfe\x00garbage\r{", '{"step": 2\u2028'.encode(), b"[1]", b'{"step": "x"}']
    lines = [good[0], garbage[0], good[1], garbage[1], garbage[2], good[2], garbage[3]]
    path.write_bytes(b"\n".join([*lines, good[3], good[4], b'{"step": 6, "tot']))
    trim_lines(path, 3)
    assert path.read_bytes() == b"".join(line + b"\n" for line in lines)
    assert "stats.jsonl: 4 damaged lines, left in place: 2, 4, 5, 7" in caplog.text


def test_bits_flipped_while_a_build_runs_stop_it(copy: Path, built: Path) -> None:
    from pipeline.build.plan import plan_build, prepare
    from pipeline.build.publish import finish
    from pipeline.build.shard import build_shard

    one_part(copy)[1].unlink()  # as if a kill had been there
    build = plan_build(prepare(config(copy)))
    made = [build_shard(build.job, shard) for shard in build.plan.to_do]
    spoil(copy / "patches.work" / f"{made[0]}.parquet", "flip")
    before = rows(copy)
    with pytest.raises(UserError, match=rf"{made[0]}: damaged .*run the same command again"):
        finish(build, made)
    assert rows(copy) == before
    assert len(run_stages(config(copy))) == 1 and rows(copy) == rows(built)
