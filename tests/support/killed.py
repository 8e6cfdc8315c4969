"""Builds in processes of their own, killed with SIGKILL at random moments or at a chosen step.

    python -m tests.support.killed --kills 500 --seed 3     # the long run; the test does 8

`tests/support/processes.py` starts them within milliseconds, so that most of their life is work.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from PIL import Image

from lasr.errors import UserError
from pipeline.build.lock import sole_build
from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.build.shard import build_shard
from pipeline.config import BuildConfig
from pipeline.demo import copy_photographs
from schemas.manifest import ManifestError, open_manifest
from tests.support import processes
from tests.support.words import WORDS

REFUSED = 3  # exit status of a build that ended with a UserError


def build(config: BuildConfig) -> None:
    """The whole of `pipeline.run` but for Prefect."""
    prepared = prepare(config)
    with sole_build(config.work):
        build = plan_build(prepared)
        made = [build_shard(build.job, shard) for shard in build.plan.to_do]
        finish(build, made)


def child(
    config: BuildConfig, prepare: Callable[[], None] | None = None, errors: Path | None = None
) -> None:
    """What a process of its own does; `prepare` may put traps up first."""
    try:
        if prepare:
            prepare()
        build(config)
    except UserError as error:
        if errors:
            errors.write_text(str(error))
        os._exit(REFUSED)


@dataclass(frozen=True)
class Environment:
    """Gives a process variables: it has those of the first one that was started (`processes`)."""

    variables: dict[str, str]

    def __call__(self) -> None:
        os.environ.update(self.variables)


class Trap:
    """Kills its process right before or right after the n-th step that changes the disk."""

    STEPS = ("replace", "link", "fsync", "unlink", "rename", "rmdir")

    def __init__(self, at: int, after: bool):
        self.at, self.after = at, after

    def __call__(self) -> None:
        left = [self.at]
        lock = threading.Lock()

        def trapped(original: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                with lock:
                    left[0] -= 1
                    mine = left[0] == 0
                if mine and not self.after:
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    return original(*arguments, **options)
                finally:
                    if mine:
                        os.kill(os.getpid(), signal.SIGKILL)

            return step

        for name in self.STEPS:
            setattr(os, name, trapped(getattr(os, name)))


def small_album(folder: Path, photographs: int = 7) -> Path:
    """Crops of real photographs, small enough to build in about a second; one is broken."""
    source = folder.with_name(f"{folder.name}-source")
    copy_photographs(source)
    folder.mkdir(parents=True)
    for path in sorted(source.iterdir())[-photographs:]:
        with Image.open(path) as image:
            image.convert("RGB").crop((0, 0, 300, 280)).save(folder / f"{path.stem}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(next(folder.glob("*.png")), folder / "twin.png")
    words(folder).write_text("\n".join(WORDS[:30]))
    return folder


def words(album: Path) -> Path:
    """A short dictionary: a build should not spend its life on a thousand embeddings."""
    return album.with_name("words.txt")


def digest(out: Path) -> str:
    """Hash of a manifest's sorted rows, and of its catalogue's."""
    rows = ds.dataset([str(file) for file in open_manifest(out).files]).to_table().to_pylist()
    catalogue = ds.dataset(out.with_name("images.parquet")).to_table().to_pylist()
    rows.sort(key=lambda row: row["patch_id"])
    catalogue.sort(key=lambda row: row["path"])
    return hashlib.sha256(repr((rows, catalogue)).encode()).hexdigest()


def patch_ids(out: Path) -> frozenset[str] | None:
    """What a reader sees; None: nothing yet, or the folder was exchanged while it looked."""
    try:
        files = [str(file) for file in open_manifest(out, ["patch_id"]).files]
        return frozenset(ds.dataset(files).to_table(["patch_id"])["patch_id"].to_pylist())
    except (FileNotFoundError, ManifestError):
        return None


class Reader(threading.Thread):
    """Looks at the manifest all the time and remembers every different thing that it saw."""

    def __init__(self, out: Path):
        super().__init__(daemon=True)
        self.out, self.seen = out, set[frozenset[str]]()
        self.looks, self._halt = 0, threading.Event()

    def run(self) -> None:
        while not self._halt.is_set():
            if (seen := patch_ids(self.out)) is not None:
                self.seen.add(seen)
            self.looks += 1
            time.sleep(0.02)

    def stop(self) -> None:
        self._halt.set()
        self.join()


def leftovers(folder: Path) -> list[str]:
    """Names that no finished build leaves."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [name for name in names if ".tmp" in name or "publishing" in name or ".old" in name]


def torture(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill builds of changing parameters `kills` times; check rows, leftovers and readers.

    Raises AssertionError. Returns how builds ended: killed or complete.
    """
    rng = random.Random(seed)
    album, context = small_album(folder / "album", 3), processes.context()
    out = folder / "patches.parquet"
    plain: dict[str, Any] = {"images": [str(album)], "profile": "test", "shard_size": 2}
    plain["dictionary"] = words(album)
    variants = [
        BuildConfig(**plain, out=out, k=2),
        BuildConfig(**plain, out=out, k=3, strategy="overlap"),
        BuildConfig(**plain, out=out, k=2, min_separation=60),
    ]
    expected, views, lengths = [], set[frozenset[str]](), []
    for number, config in enumerate(variants):
        calm = config.model_copy(update={"out": str(folder / str(number) / "patches.parquet")})
        lengths.append(_undisturbed(context, calm))
        expected.append(digest(Path(calm.out)))
        views.add(patch_ids(Path(calm.out)) or frozenset())

    ended: Counter[str] = Counter()
    reader = Reader(out)
    reader.start()
    number = 0
    while ended["killed"] < kills:
        process = context.Process(target=child, args=(variants[number],))
        process.start()
        process.join(rng.uniform(0, min(lengths)))  # the first build waited for the server, too
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if process.exitcode == -signal.SIGKILL:
            ended["killed"] += 1
            continue
        assert process.exitcode == 0, f"a build ended with {process.exitcode}"
        ended["complete"] += 1
        assert digest(out) == expected[number], f"other rows after {dict(ended)}"
        assert not leftovers(folder), leftovers(folder)
        number = (number + 1) % len(variants)
    _undisturbed(context, variants[number])
    reader.stop()
    assert digest(out) == expected[number]
    assert not leftovers(folder), leftovers(folder)
    assert reader.seen <= views, "a reader saw half a manifest"
    ended["looks of a reader"] = reader.looks
    return ended


def _undisturbed(context: ForkServerContext, config: BuildConfig) -> float:
    """Seconds that the build took."""
    started = time.monotonic()
    process: ForkServerProcess = context.Process(target=child, args=(config,))
    process.start()
    process.join()
    assert process.exitcode == 0, f"an undisturbed build ended with {process.exitcode}"
    return time.monotonic() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        print(dict(torture(Path(place), arguments.kills, arguments.seed)))
    print(f"{time.monotonic() - begun:.0f} s, seed {arguments.seed}")
