"""A manifest in storage: the batches of a local one, fetched once, whatever fails on the way."""

import dataclasses
import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.s3_server import S3
from lasr.errors import UserError
from lasr.storage import cache as cache_module
from lasr.storage.cache import RangeCache
from lasr.storage.config import StorageConfig
from lasr.storage.filesystem import StorageError
from lasr.storage.manifest import open_manifest
from lasr.storage.remote import StoredFile
from schemas.manifest import ManifestError
from tests.support import processes
from tests.support.damage import flip
from tests.support.hub import reached_by_huggingface_hub, serve
from tests.support.hub_api import Repository
from tests.support.stored import ADDRESS, in_groups, on_s3
from trainer.data import reader as reader_module
from trainer.data.dataset import COLUMNS, Batch, Patches

SIZE = 4
STEPS = 12  # of four pairs: nearly two epochs of 28


@pytest.fixture(scope="module")
def local(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of several row groups of 5 rows."""
    return in_groups(manifest, tmp_path_factory.mktemp("groups") / "patches.parquet")


@pytest.fixture
def s3(local: Path, tmp_path: Path) -> Iterator[S3]:
    with on_s3(local, tmp_path) as server:
        yield server


def config(tmp_path: Path, name: str = "cache", **changes: Any) -> StorageConfig:
    return StorageConfig(cache=tmp_path / name, **({"storage_timeout": 300} | changes))


def remote(settings: StorageConfig, address: str = ADDRESS, **options: Any) -> Patches:
    return Patches(open_manifest(address, COLUMNS, settings), **options)


def on_disk(path: Path, **options: Any) -> Patches:
    return Patches(open_manifest(path, COLUMNS), **options)


def batches(
    patches: Patches, start: int = 0, stop: int = STEPS, rank: int = 0, world: int = 1
) -> list[Batch]:
    return list(patches.batches(start, stop, SIZE, 2, rank, world))


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.lr, b.lr) and torch.equal(a.hr, b.hr)
        assert dataclasses.astuple(a)[2:] == dataclasses.astuple(b)[2:]


def groups_fetched(s3: S3, local: Path) -> list[tuple[str, int]]:
    """Part and number of each row group whose pictures were asked for, in the order of requests."""
    found = []
    for method, path, asked in s3.asked:
        if method != "GET" or not asked:
            continue
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        file = local / Path(path).name if local.is_dir() else local
        footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups):
            columns = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
            (image,) = (c for c in columns if c.path_in_schema == "image.bytes")
            start = image.data_page_offset
            if first <= start and start + image.total_compressed_size - 1 <= last < file_end(file):
                found.append((file.name, group))
    return found


def file_end(file: Path) -> int:
    """The last byte: a range up to it is the end of the file, fetched for its footer."""
    return file.stat().st_size - 1


@pytest.fixture(autouse=True)
def small_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups are small here: they would come with the end of a file, or between columns."""
    monkeypatch.setattr("lasr.storage.ranges.TAIL", 1 << 12)
    monkeypatch.setattr("lasr.storage.remote._GAP", 1 << 10)


def test_batches_identity_and_index_are_those_of_a_local_manifest(
    local: Path, s3: S3, tmp_path: Path
) -> None:
    expected, settings = on_disk(local), config(tmp_path)
    found = remote(settings)
    assert found.manifest.identity == expected.manifest.identity
    assert found.manifest.former_identity == expected.manifest.former_identity
    for field in dataclasses.fields(found.reader.index):
        a, b = (getattr(p.reader.index, field.name) for p in (found, expected))
        assert (a == b).all()
    assert groups_fetched(s3, local) == []  # no pixel before the first batch
    assert_equal(batches(found), batches(expected))
    assert found.reader.locate(3) == expected.reader.locate(3)
    assert found.described(found.batch(0, 2)) == expected.described(expected.batch(0, 2))
    fetched = groups_fetched(s3, local)
    assert len(fetched) == len(set(fetched)) == len(found.reader.chunks)
    # Another process, or a resumed one: the footers alone come again.
    s3.asked.clear()
    again = remote(StorageConfig(**settings.model_dump() | {"storage_timeout": 301}))
    assert_equal(batches(again, 5), batches(expected, 5))
    assert groups_fetched(s3, local) == []
    for _, path, asked in s3.asked:
        if asked:  # Arrow looks for a footer in the last 64 kB
            start = int(asked.removeprefix("bytes=").split("-")[0])
            assert start >= file_end(local / Path(path).name) - 2**16


def test_row_groups_are_fetched_before_they_are_needed(
    local: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first batch is used, the next row groups come; never more ahead than allowed."""
    monkeypatch.setattr("trainer.data.dataset.AHEAD", 0)
    found = remote(config(tmp_path))
    found.reader.cache_rows = 5
    running = found.batches(0, STEPS, SIZE, 1)
    next(running)
    while len(set(groups_fetched(s3, local))) < len(found.reader.chunks):
        time.sleep(0.02)
    running.close()


def test_the_cache_is_bounded_and_the_batches_stay(local: Path, s3: S3, tmp_path: Path) -> None:
    size = max(p.stat().st_size for p in local.iterdir())
    limit = size // 2
    settings = config(tmp_path, cache_size=limit / 1e9)
    found = remote(settings)
    found.reader.cache_rows = 5
    expected = on_disk(local)
    for batch, other in zip(
        found.batches(0, STEPS, SIZE, 2), expected.batches(0, STEPS, SIZE, 2), strict=True
    ):
        assert_equal([batch], [other])
        held = 0
        for file in (tmp_path / "cache").glob("*.range"):
            with suppress(FileNotFoundError):  # a thread reads ahead, and makes space
                held += file.stat().st_size
        assert held <= limit + size / 2  # and what the threads are writing
    fetched = groups_fetched(s3, local)
    assert len(fetched) > len(set(fetched))


def test_a_damaged_cache_is_fetched_again(
    local: Path, s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, expected = config(tmp_path), batches(on_disk(local))
    batches(remote(settings))
    for file in (tmp_path / "cache").glob("*.range"):
        content = file.read_bytes()
        file.write_bytes(flip(content, 8 * len(content) - 1) if len(content) % 2 else content[:50])
    with caplog.at_level(logging.WARNING):
        assert_equal(batches(remote(settings)), expected)
    lines = [
        line for line in caplog.messages if line.endswith("damaged in the cache, fetched again")
    ]
    assert len(lines) == len(list((tmp_path / "cache").glob("*.range")))


def test_damage_in_storage_is_that_of_a_damaged_local_file(
    local: Path, s3: S3, tmp_path: Path
) -> None:
    part = s3.folder / "bucket/data/patches.parquet/0.parquet"
    footer = pq.read_metadata(part).row_group(1)
    columns = [footer.column(i) for i in range(footer.num_columns)]
    (image,) = (c for c in columns if c.path_in_schema == "image.bytes")
    part.write_bytes(flip(part.read_bytes(), 8 * (image.data_page_offset + 300)))
    expected = batches(on_disk(part.parent))
    found = batches(remote(config(tmp_path)))
    assert sum(len(batch.skipped) for batch in found) > 0
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.lr, b.lr) and a.lr_rows == b.lr_rows
        assert [row.row for row in a.skipped] == [row.row for row in b.skipped]
    # Once more for the damaged one, which may have been damaged on the way.
    assert groups_fetched(s3, local).count(("0.parquet", 1)) >= 2


def test_a_flaky_server_changes_nothing(local: Path, s3: S3, tmp_path: Path) -> None:
    settings = config(tmp_path)
    # Twelve in a row outlast the library's own attempts.
    s3.fault = lambda number, path: 503 if number % 3 == 0 or 20 <= number < 32 else 0
    assert_equal(batches(remote(settings)), batches(on_disk(local)))
    assert settings.access.patience.retries > 0


def test_an_outage_ends_with_one_line_and_no_row_counts_as_bad(
    local: Path, s3: S3, tmp_path: Path
) -> None:
    found = remote(config(tmp_path, storage_timeout=0.5))
    s3.fault = lambda number, path: 503
    with pytest.raises(StorageError) as raised:
        batches(found)
    text = str(raised.value)
    assert text.startswith(f"{ADDRESS}/") and "run the same command again" in text
    assert "\n" not in text and re.search("SLOW_DOWN|SERVICE_UNAVAILABLE|503", text)


@pytest.mark.parametrize("how", ["full", "read only"])
def test_without_room_for_the_cache_it_goes_on(
    how: str, local: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings, expected = config(tmp_path), batches(on_disk(local))
    found = remote(settings)
    number = errno.ENOSPC if how == "full" else errno.EROFS

    def refuses(path: Any, mode: str = "r", **options: Any) -> Any:
        if "w" in mode:
            raise OSError(number, os.strerror(number))
        return open(path, mode, **options)

    monkeypatch.setattr(cache_module, "open", refuses, raising=False)
    with caplog.at_level(logging.WARNING):
        assert_equal(batches(found), expected)
    (line,) = [line for line in caplog.messages if "nothing more is cached" in line]
    assert str(tmp_path / "cache") in line and ("the disk is full" in line) == (how == "full")


def test_a_folder_of_others_is_no_cache(local: Path, s3: S3, tmp_path: Path) -> None:
    mine = tmp_path / "cache"
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds letter.txt and no cache of LA-SR.*--cache"):
        remote(config(tmp_path))
    assert [file.name for file in mine.iterdir()] == ["letter.txt"]
    # In one that is ours: files that are not stay, those of killed processes go.
    settings = config(tmp_path, "own", cache_size=1e-9)
    batches(remote(settings), 0, 2)
    foreign, abandoned = tmp_path / "own/notes.range", tmp_path / f"own/.{'a' * 40}.{'b' * 8}.tmp"
    foreign.write_text("precious")
    for file in (foreign, abandoned):
        file.touch()
        os.utime(file, (0, 0))
    settings.access.cache._make_space(10)
    assert foreign.read_text() == "precious" and not abandoned.exists()


def fetch_all(folder: Path, environment: dict[str, str], ready: Any, go: Any) -> None:
    """In a process: have all row groups of the manifest in a cache."""
    os.environ |= environment
    manifest = open_manifest(ADDRESS, COLUMNS, StorageConfig(cache=folder))
    ready.release()
    go.wait(600)
    for file in manifest.parts:
        assert isinstance(file, StoredFile)
        with file.open() as opened:
            footer = pq.read_metadata(opened)
        for group in range(footer.num_row_groups):
            file.columns(footer, ["image"], [group])


def test_two_processes_that_share_a_cache_fetch_once(local: Path, s3: S3, tmp_path: Path) -> None:
    context = processes.context()
    ready, go = context.Semaphore(0), context.Event()
    both = [
        context.Process(target=fetch_all, args=(tmp_path / "cache", s3.environment, ready, go))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for _ in both:
        assert ready.acquire(timeout=600)
    go.set()
    for process in both:
        process.join()
        assert process.exitcode == 0
    fetched = groups_fetched(s3, local)
    assert len(fetched) == len(set(fetched)) > 8


def test_a_process_killed_while_it_fetches_leaves_a_cache_that_works(tmp_path: Path) -> None:
    context = processes.context()
    reached = context.Event()
    process = context.Process(target=holds, args=(tmp_path / "cache", reached))
    process.start()
    assert reached.wait(600)
    process.kill()
    process.join()
    cache = RangeCache(tmp_path / "cache", 10**6)
    assert cache.get("one", lambda: b"bytes") == b"bytes"  # its lock went with it
    assert cache.get("one", lambda: pytest.fail("fetched twice")) == b"bytes"


def holds(folder: Path, reached: Any) -> None:
    def fetch() -> bytes:
        reached.set()
        time.sleep(600)
        return b""

    RangeCache(folder, 10**6).get("one", fetch)


def test_files_of_sql_are_read_in_place_too(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without digests: columns are fetched, not whole groups; large groups are copied first."""
    path = tmp_path / "plain.parquet"
    pq.write_table(pq.read_table(manifest), path, row_group_size=20)
    with on_s3(path, tmp_path) as s3:
        settings = config(tmp_path)
        found, expected = remote(settings), on_disk(path)
        assert found.manifest.identity == expected.manifest.identity
        assert_equal(batches(found), batches(expected))
        s3.asked.clear()
        assert open_manifest(ADDRESS, (), settings).identity == expected.manifest.identity
        assert len(s3.asked) < 8  # the hash of all bytes is cached
        monkeypatch.setattr(reader_module, "LARGE_ROW_GROUP", 16)
        monkeypatch.setattr(reader_module, "ROW_GROUP", 8)
        assert_equal(batches(remote(settings)), batches(on_disk(path)))
        # Other bytes at the same address are another file, also with an equal footer.
        content = (s3.folder / "bucket/data/patches.parquet").read_bytes()
        (s3.folder / "bucket/data/patches.parquet").write_bytes(content)
        os.utime(s3.folder / "bucket/data/patches.parquet", (1, 1))
        before = found.manifest.parts[0]
        (after,) = open_manifest(ADDRESS, (), settings).parts
        assert isinstance(before, StoredFile) and isinstance(after, StoredFile)
        assert before.identity != after.identity


def test_a_data_set_on_the_hub_is_read_in_place(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"data/{file.name}": file.read_bytes() for file in local.iterdir()}
    with serve() as host:
        host.hub.repositories["datasets/owner/patches"] = Repository(files=files)
        reached_by_huggingface_hub(host, tmp_path / "home", monkeypatch)
        settings = config(tmp_path)
        found = remote(settings, "hf://datasets/owner/patches/data")
        assert_equal(batches(found), batches(on_disk(local)))
        with pytest.raises(
            ManifestError, match=r"no manifest there that can be read.*hf auth login"
        ):
            remote(settings, "hf://datasets/owner/private/data")


# --- Shards ---------------------------------------------------------------------------------------


def together(slices: list[Batch]) -> Batch:
    """One batch of the slices of several processes."""
    names = [column.name for column in dataclasses.fields(Batch)]
    columns = zip(*([getattr(part, n) for n in names] for part in slices), strict=True)
    return Batch(*(torch.cat(c) if torch.is_tensor(c[0]) else [*chain(*c)] for c in columns))


def test_several_machines_read_disjoint_row_groups(local: Path, s3: S3, tmp_path: Path) -> None:
    """Two ranks, each with a cache of its own, for more than two epochs of every shard."""
    alone = on_disk(local, shards=2)
    whole, slices, fetched, sizes = batches(alone, 0, 2 * STEPS), [], [], []
    for rank in range(2):
        s3.asked.clear()
        one = remote(config(tmp_path, f"cache-{rank}"), shards=2)
        before = one.fetched
        slices.append(batches(one, 0, 2 * STEPS, rank, 2))
        fetched.append(groups_fetched(s3, local))
        sizes.append(one.fetched - before)
    assert_equal([together(list(pair)) for pair in zip(*slices, strict=True)], whole)
    assert not set(fetched[0]) & set(fetched[1])
    every = [group for groups in fetched for group in groups]
    assert len(every) == len(set(every)) == len(alone.reader.chunks)  # each once, by one of them
    # Without shards each rank fetches nearly all of it.
    s3.asked.clear()
    batches(remote(config(tmp_path, "cache-2")), 0, STEPS, 0, 2)
    assert len(set(groups_fetched(s3, local))) > 0.8 * len(every)
    assert min(sizes) > 0.3 * sum(sizes)


@pytest.mark.parametrize("shards", [2, 4])
def test_with_shards_an_epoch_has_every_lr_patch_once(local: Path, shards: int) -> None:
    data, plain = on_disk(local, shards=shards), on_disk(local)
    lr = sorted(plain.rows["lr"].tolist())
    for epoch in range(3):
        orders = [data.epoch(epoch, shard)[:, 0].tolist() for shard in range(shards)]
        assert sorted(chain(*orders)) == lr
        hr = [set(data.epoch(epoch, shard)[:, 1].tolist()) for shard in range(shards)]
        assert not set.intersection(*hr)
    most = max(chunk.rows for chunk in data.reader.chunks)
    assert max(data.lr_of_shards) - min(data.lr_of_shards) <= most
    # Counted in batches: between two epochs of a shard each of its patches comes once.
    met = [batch.lr_rows for batch in batches(data, 0, 60)]
    part = SIZE // shards
    for shard in range(shards):
        order = [row for rows in met for row in rows[shard * part : (shard + 1) * part]]
        length = data.lr_of_shards[shard]
        assert len(order) > 2 * length
        for start in (0, length):
            assert sorted(order[start : start + length]) == sorted(
                data.epoch(0, shard)[:, 0].tolist()
            )


def test_with_shards_a_run_resumes_exactly_and_with_other_numbers_of_processes(
    local: Path,
) -> None:
    data = on_disk(local, shards=2)
    whole = batches(data)
    assert_equal(batches(data, 7), whole[7:])
    for world in (1, 2, 4):
        ranks = [batches(on_disk(local, shards=2), 5, STEPS, rank, world) for rank in range(world)]
        assert_equal([together(list(each)) for each in zip(*ranks, strict=True)], whole[5:])
    assert [batch.lr_rows for batch in whole] != [b.lr_rows for b in batches(on_disk(local))]


def test_more_shards_than_row_groups_are_refused(manifest: Path) -> None:
    with pytest.raises(ManifestError, match=r"--shards 4 of its 2 row groups leave a shard"):
        on_disk(manifest, shards=4)
