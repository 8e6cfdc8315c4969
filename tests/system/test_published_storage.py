"""Publications in object storage: who follows `version.parquet` sees one of them, whole."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow.dataset as ds
import pytest

from pipeline.build import publish
from pipeline.storage import StoragePath
from schemas.catalogue import BESIDE, work_name
from tests.support.published import look_in_storage, make_part, publish_parts
from tests.system.test_object_storage import asked, bucket, objects, server

pytestmark = pytest.mark.slow

__all__ = ["asked", "bucket", "server"]  # fixtures

PHOTOGRAPHS = (
    {f"a{n}": n for n in range(8)},
    {f"b{n}": n for n in range(8, 14)} | {"twin": 3},
    {f"c{n}": n for n in range(20, 24)},
)
NAMES: dict[int, str] = {}


class Died(BaseException):
    """Instead of a kill: nothing in object storage is tidied up on the way out either."""


def published(out: StoragePath, *numbers: int) -> bool:
    work = out.parent / work_name(out.name)
    return publish_parts(out, work, [made(work, number) for number in numbers])


def made(work: StoragePath, number: int) -> str:
    """The name of a part, which is made where it is not there."""
    if number not in NAMES:
        NAMES[number] = make_part(work, PHOTOGRAPHS[number])
    return (
        NAMES[number]
        if (work / f"{NAMES[number]}.images.parquet").exists()
        else make_part(work, PHOTOGRAPHS[number])
    )


def for_everybody(out: StoragePath) -> tuple[list[str], list[bytes]]:
    """Names in the manifest, and the files beside it."""
    return out.names(), [(out.parent / name).read_bytes() for name in BESIDE]


def dying(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th step that changes the storage be the last thing that is not done."""
    left = [step]

    def trapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Died
            return original(*given, **named)

        return call

    for place, name in (
        (StoragePath, "take"), (StoragePath, "remove"), (publish, "place"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, trapped(getattr(place, name)))


def test_killed_anywhere_and_the_next_build_cleans_up(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = StoragePath(f"{bucket}/fresh/patches.parquet")
    published(fresh, 1, 2)
    new, expected = look_in_storage(fresh), for_everybody(fresh)
    seen = []
    for step in range(1, 100, 4):
        out = StoragePath(f"{bucket}/{step}/patches.parquet")
        published(out, 0, 1)
        old = look_in_storage(out)
        with monkeypatch.context() as patched:
            dying(step, patched)
            try:
                published(out, 1, 2)
            except Died:
                ended = False
            else:
                ended = True
        view = look_in_storage(out)
        assert view in (old, new), f"half a manifest, step {step}"
        seen.append(view == new)
        published(out, 1, 2)
        assert look_in_storage(out) == new and for_everybody(out) == expected
        if ended:
            break
    assert seen == sorted(seen) and {*seen} == {True, False}


def test_a_rerun_writes_nothing(bucket: str, asked: list[tuple[str, int]]) -> None:
    out = StoragePath(f"{bucket}/data/patches.parquet")
    work = out.parent / work_name(out.name)
    names = [make_part(work, one) for one in PHOTOGRAPHS]
    assert publish_parts(out, work, names)
    asked.clear()
    assert not publish_parts(out, work, names)
    assert not [what for what, _ in asked if what.startswith(("PUT", "POST", "DELETE"))]
    # A part of the manifest that was replaced there is noticed, and published again.
    part = out / f"{names[0]}.parquet"
    part.write_bytes(part.read_bytes()[:-5])
    assert publish_parts(out, work, names) and look_in_storage(out)


def test_a_reader_never_combines_two_publications(bucket: str) -> None:
    """While another thread publishes twenty times. Others see plain Parquet at the end."""
    out = StoragePath(f"{bucket}/data/patches.parquet")
    published(out, 0, 1)

    def publish_often() -> None:
        for number in range(20):
            published(out, *((1, 2) if number % 2 == 0 else (0, 1)))

    thread = threading.Thread(target=publish_often)
    thread.start()
    seen = set()
    while thread.is_alive():
        if (view := look_in_storage(out)) is not None:
            seen.add(view)
        time.sleep(0.05)
    thread.join()
    assert 1 <= len(seen) <= 2 and look_in_storage(out) in seen
    rows = ds.dataset(out.key, filesystem=out.fs, format="parquet").to_table(["image_path"])
    view = look_in_storage(out)
    assert view and {*rows["image_path"].to_pylist()} == view[0]
    assert len(objects(bucket)) == len(out.names()) + 3 + len((out.parent / "patches.work").names())
