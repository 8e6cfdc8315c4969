"""Disturb builds, queries, reports and training at random and check what must hold all the same.

    python -m tests.chaos --minutes 10 --seed 3
    python -m tests.chaos --episodes 4 --first 17 --seed 3     # episodes 17 to 20 of that seed

Every episode prints a line. A violation ends the run with status 1 and the folder is kept. The
choices depend on the seed and the number of the episode; which moment a signal hits does not.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.episodes import episode, prepare
from tests.chaos.programs import adopt_orphans
from tests.chaos.report import Report, Violation
from tests.chaos.world import World, unmount


def torment(
    folder: Path,
    seed: int,
    minutes: float,
    episodes: int,
    first: int = 1,
    flow_every: int = 8,
    report: Report | None = None,
) -> Report:
    """Run episodes until the time is over; raises Violation.

    flow_every: of so many episodes, one builds through Prefect; 0 = none. report: where to count.
    """
    report = report or Report()
    adopt_orphans(True)
    try:
        end = time.monotonic() + 60 * minutes
        world = World.create(folder, random.Random(seed))
        report.seconds = prepare(world)
        for number in range(first, first + episodes):
            if time.monotonic() > end:
                break
            rng, begun = random.Random(f"{seed}:{number}"), time.monotonic()
            flow = flow_every > 0 and number % flow_every == 0
            try:
                said = episode(world, rng, report, flow)
            except Violation as error:
                report.violations += 1
                raise Violation(f"seed {seed}, episode {number}: {error}") from error
            print(f"{number:4} {time.monotonic() - begun:5.1f} s  {said}", flush=True)
        return report
    finally:
        unmount(folder / "data")  # of an episode that ended half-way
        adopt_orphans(False)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="start no episode after them")
    parser.add_argument("--episodes", type=int, default=10**6)
    parser.add_argument("--first", type=int, default=1, help="number of the first episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flow-every", type=int, default=8, help="builds through Prefect; 0: none")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="lasr-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    report, begun = Report(), time.monotonic()
    try:
        torment(
            folder, given.seed, given.minutes, given.episodes, given.first, given.flow_every, report
        )
    except Violation as error:
        print(f"VIOLATION: {error}\nlook at {folder}: data/, photos/, runs/, logs/", flush=True)
        return 1
    except BaseException:
        print(f"the folder is kept: {folder}", file=sys.stderr)
        raise
    finally:
        minutes = (time.monotonic() - begun) / 60
        print(f"\nseed {given.seed}, {minutes:.0f} minutes\n\n{report.table()}", flush=True)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
