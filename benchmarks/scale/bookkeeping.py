"""What a build costs that has nothing to compute: finding, comparing, publishing, by photograph.

The parts are made up, with the files and the metadata of real ones, and 16 rows with small pictures
for each photograph. Each size runs in a process of its own, for its peak of memory.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PER_PART = 256
PER_FOLDER = 1000


def measure(photographs: int) -> dict[str, float]:
    """CPU seconds of each step, and MB of memory at the peak above that of a build of one part."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.scale.bookkeeping", folder, str(photographs)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _make(top: Path, photographs: int) -> Any:
    """Empty files as photographs, and a work folder in which all of them are finished."""
    import pyarrow as pa

    from pipeline.build.parts import keep_part, part_metadata
    from pipeline.build.plan import plan_build, prepare
    from pipeline.config import BuildConfig
    from pipeline.storage import scratch
    from schemas.catalogue import IMAGES
    from schemas.manifest import PATCHES
    from schemas.parquet import rows_to

    for number in range(photographs):
        file = top / f"photos/{number // PER_FOLDER:06}/{number:09}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    images, out = [str(top / "photos")], str(top / "patches.parquet")
    config = BuildConfig(images=images, out=out, profile="test", shard_size=PER_PART)
    build = plan_build(prepare(config))
    config.work.path.mkdir(parents=True)
    for shard in build.plan.to_do:
        entries = [_entry(one.name) for one in shard.photographs]
        with scratch(config.work, shard.name) as temporary:
            with rows_to(temporary, PATCHES, build.job.metadata) as write:
                write([_row(entry, number) for entry in entries for number in range(16)])
            table = pa.Table.from_pylist(entries, schema=IMAGES)
            keep_part(config.work, temporary, table, part_metadata(build.job.identities, shard))
    return config


def _entry(name: str) -> dict[str, Any]:
    identity = f"{int(Path(name).stem):064x}"
    sizes = {"width": 2000, "height": 1500, "n_lr": 8, "n_hr": 8}
    phash = f"{hash(name) & (2**64 - 1):016x}"
    return {"image_id": identity, "path": name, "status": "ok", "phash": phash, **sizes}


def _row(entry: dict[str, Any], number: int) -> dict[str, Any]:
    role, rank = ("lr", "hr")[number % 2], number // 2
    identity = f"{entry['image_id'][1:]}{number:x}"
    phash = f"{hash(identity) & (2**64 - 1):016x}"
    common = {"patch_id": identity, "image_id": entry["image_id"], "image_path": entry["path"]}
    picture = {"bytes": identity.encode() * 4, "path": f"{identity}.png"}
    return {**common, "role": role, "size": 56, "rank": rank, "phash": phash, "image": picture}


def _run(top: Path, photographs: int) -> dict[str, float]:
    import resource

    from pipeline.build.plan import plan_build, prepare
    from pipeline.build.publish import finish

    config = _make(top, photographs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        start = time.process_time()
        value = step()
        result[name] = time.process_time() - start
        return value

    prepared = timed("find", lambda: prepare(config))
    build = timed("plan, parts read in full", lambda: plan_build(prepared))
    assert not build.to_do, "the made-up parts are not finished ones"
    timed("publish", lambda: finish(build, []))
    prepared = timed("find again", lambda: prepare(config))
    build = timed("plan again", lambda: plan_build(prepared))
    timed("publish again", lambda: finish(build, []))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result | {"MB": (after - before) / 1024}


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), int(sys.argv[2]))))
