"""A short run of the chaos harness; `make chaos MINUTES=60` runs it for longer."""

import random
from pathlib import Path

import pytest

from schemas.current import is_part
from tests.chaos.__main__ import torment
from tests.chaos.checks import check_accounted, check_done, check_rows
from tests.chaos.disturbances import damage
from tests.chaos.episodes import prepare
from tests.chaos.report import Report, Violation
from tests.chaos.runs import check_result, complete, skipped
from tests.chaos.world import World
from tests.support.damage import spoil

pytestmark = pytest.mark.slow

EPISODES = 3
SEED = 4  # signals, damage, obstacles and changed photographs in its first episodes


def test_what_must_hold_holds_whatever_happens(tmp_path: Path) -> None:
    report = torment(tmp_path, SEED, minutes=60, episodes=EPISODES, flow_every=0)
    assert report.episodes["all"] == EPISODES and len(report.disturbances) >= 4
    assert report.outcomes["build done"] + report.outcomes["build refused"] > 0


def test_a_violation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are missing, wrong or not mentioned, and a file that is left."""
    rng, report = random.Random(0), Report()
    world = World.create(tmp_path, rng)
    check_done(world.build("two"))
    check_rows(world, "two", report)
    with pytest.raises(Violation, match="rows differ from an undisturbed build"):
        check_rows(world, "three", report)
    (world.work / ".part.tmp").touch()
    with pytest.raises(Violation, match=r"temporary files are left: .*part\.tmp"):
        check_rows(world, "two", report)
    (world.work / ".part.tmp").unlink()
    (world.photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(Violation, match=r"not mentioned in images.parquet: \['phone.heic'\]"):
        check_accounted(world, None, report)
    damage(next(world.out.glob("*.parquet")), "truncate", rng)
    with pytest.raises(Violation, match="the manifest cannot be read"):
        check_rows(world, "two", report)


def test_a_run_on_a_damaged_manifest_is_compared(tmp_path: Path) -> None:
    """With a run left alone on the same manifest; on a whole one, with one on a whole one."""
    world, report = World.create(tmp_path, random.Random(0)), Report()
    prepare(world)
    parts = [path for path in world.training.iterdir() if is_part(path.name)]
    spoil(min(parts, key=lambda path: path.stat().st_size), "flip")
    world.note_damage()
    assert world.training_is_damaged and not world.manifest_changed
    assert complete(world, report).outcome == "done"
    check_result(world, report)
    assert report.checks["a run: losses and weights of a run left alone on the damaged manifest"]
    assert skipped(world.run)
    world.mend_training()
    (world.run / "skipped.jsonl").unlink()  # a run that does not say what it skipped
    with pytest.raises(Violation, match="losses differ from those of a run left alone"):
        check_result(world, report)
