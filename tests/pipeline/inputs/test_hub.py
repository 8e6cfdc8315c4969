"""Photographs on the Hugging Face Hub: `hf://` through its file system, on a loopback hub."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.inputs.photographs import find, find_all
from tests.pipeline.inputs.test_archives import by_name, contents, pack, tabulate
from tests.pipeline.inputs.test_changes import Built, album, build, read
from tests.support.hub import Host, reached_by_huggingface_hub, serve
from tests.support.hub_api import Repository

__all__ = ["album", "build", "read"]  # fixtures
ADDRESS = "hf://datasets/owner/photos"


@pytest.fixture
def host(tmp_path: Path, album: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A data set with a Parquet file, a tar, plain pictures and what a repository has besides."""
    table = tabulate(tmp_path / "t.parquet", contents(album)[:1]).read_bytes()
    tar = pack(tmp_path / "t.tar", contents(album)[1:2]).read_bytes()
    with serve() as host:
        host.hub.repositories["datasets/owner/photos"] = Repository(
            files={
                ".gitattributes": b"", "README.md": b"#", "loose/c.bmp": contents(album)[2][1],
                "data/train-00000-of-00001.parquet": table, "shards/00.tar": tar,
            }
        )  # fmt: skip
        reached_by_huggingface_hub(host, tmp_path / "home", monkeypatch)
        yield host


def test_a_data_set_on_the_hub_gives_the_rows_of_its_files(
    host: Host, build: Built, album: Path, tmp_path: Path, read: Counter[str]
) -> None:
    fresh = Built(tmp_path / "fresh" / "patches.parquet")
    fresh(album)
    build(ADDRESS)  # type: ignore[arg-type]
    assert list(build.catalogue) == [
        "data/train-00000-of-00001.parquet/00000000/a.bmp", "loose/c.bmp", "shards/00.tar/b.bmp"
    ]  # fmt: skip
    a, c, b = by_name(build)
    assert [a, b, c] == by_name(fresh)
    assert find_all([ADDRESS]).passed.counts == {"hidden": 1, ".md": 1}
    read.clear()
    build(ADDRESS)  # type: ignore[arg-type]
    assert not build.plan.to_do and not read  # by the ids that git gives to contents


def test_a_member_is_one_range_of_its_archive(host: Host, album: Path) -> None:
    (one,) = find([f"{ADDRESS}/shards/*.tar"])
    host.seen.clear()
    assert one.read_bytes() == contents(album)[1][1]
    ranges = [seen.range for seen in host.seen if seen.method == "GET" and seen.range]
    assert one.member is not None
    assert ranges == [f"bytes={one.member.at}-{one.member.at + one.size - 1}"]


def test_what_cannot_be_reached_is_one_line(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("hf://datasets/owner/nothing", f"{ADDRESS}/nowhere"):
        assert list(find_all([address]).unreachable) == [address]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reason = find_all(["hf://datasets/owner/other"]).unreachable["hf://datasets/owner/other"]
    assert "\n" not in reason and reason
