"""A short run of the chaos harness; `make chaos MINUTES=60` runs it for longer."""

import random
from pathlib import Path

import pytest

from tests.chaos import episodes
from tests.chaos.__main__ import torment
from tests.chaos.disturbances import damage
from tests.chaos.episodes import Violation, check_rows
from tests.chaos.world import World

EPISODES = 3
SEED = 4  # signals, damage, obstacles and changed photographs in its first episodes


def test_what_must_hold_holds_whatever_happens(tmp_path: Path) -> None:
    report = torment(tmp_path, SEED, minutes=60, episodes=EPISODES, flow_every=0)
    assert report.episodes == EPISODES and len(report.disturbances) >= 4
    assert report.outcomes["build done"] + report.outcomes["build refused"] > 0


def test_a_violation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are missing, wrong or not mentioned, and a file that is left."""
    rng = random.Random(0)
    world = World.create(tmp_path, rng)
    episodes.check_done(world.build("two"))
    check_rows(world, "two")
    with pytest.raises(Violation, match="rows differ from an undisturbed build"):
        check_rows(world, "three")
    (world.work / ".part.tmp").touch()
    with pytest.raises(Violation, match=r"temporary files are left: .*part\.tmp"):
        check_rows(world, "two")
    (world.work / ".part.tmp").unlink()
    (world.photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(Violation, match=r"not mentioned in images.parquet: \['phone.heic'\]"):
        episodes.check_accounted(world, None)
    damage(next(world.out.glob("*.parquet")), "truncate", rng)
    with pytest.raises(Violation, match="the manifest cannot be read"):
        check_rows(world, "two")
