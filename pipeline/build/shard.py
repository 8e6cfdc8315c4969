"""One shard of photographs to one part, all stages at work at the same time.

    threads   read, decode, prepare for the depth network      steps.py
    here      the depth network, photographs of one size       batches.py
    threads   choose patches, cut, encode as PNG               steps.py
    here      CLIP, patches of many photographs                batches.py
    a thread  write

Photographs keep their order, and each stage runs a bounded number of them ahead: memory does not
grow with the shard. What a photograph gives does not depend on its neighbours, to the last bit: the
networks' batches always have the same size, filled up where patches are missing. So rows are equal
wherever a build was cut or stopped.
"""

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2

from pipeline.build.batches import Tick, ahead, described, measured
from pipeline.build.cache import Kept
from pipeline.build.earlier import EarlierRows
from pipeline.build.fingerprint import Identities
from pipeline.build.parts import Shard, part_files, part_metadata, part_name
from pipeline.build.workers import Cut, Steps
from pipeline.config import BuildConfig
from pipeline.stages.models import load_models
from pipeline.storage import scratch
from schemas.catalogue import IMAGES
from schemas.manifest import PATCHES, Row
from schemas.parquet import rows_to

M_ARENA_MAX = -8  # of glibc's malloc.h


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of a build; small, and survives pickling."""

    config: BuildConfig
    identities: Identities
    metadata: dict[str, Any]  # of every part


def build_shard(job: Job, shard: Shard, tick: Tick = lambda n: None) -> str:
    """Make the part of a shard and return its name. tick(n) is told of every n photographs done.

    A photograph that cannot be used is recorded and never stops the others. Raises UserError:
    weights that cannot be loaded, a place that cannot be written.
    """
    share_arenas()
    cv2.setNumThreads(1)  # photographs are the unit of parallel work, not rows of pixels
    config, work = job.config, job.config.work
    models = load_models(config)
    kept = Kept(config.kept_folder, job.identities.depth, job.identities.features)
    steps = Steps(config, models, kept, EarlierRows(work, shard.earlier))
    limit = config.workers + 2
    catalogue: list[Row] = []
    pool = ThreadPoolExecutor(config.workers, thread_name_prefix="photographs")
    writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
    keeping = []

    def keep(cut: Cut) -> None:
        keeping.append(pool.submit(kept.keep_features, cut.entry["image_id"], cut.features))

    try:
        with scratch(work, shard.name) as temporary:
            with rows_to(temporary, PATCHES, job.metadata) as write:

                def finish(done: tuple[Row, list[Row]]) -> Row:
                    write(done[1])
                    return done[0]

                read = ahead(pool, steps.read, shard.photographs, limit)
                cut = ahead(pool, steps.cut, measured(read, models), limit)
                for entry in ahead(writer, finish, described(cut, models, keep), limit=2):
                    catalogue.append(entry)
                    tick(1)
            for future in keeping:
                future.result()
            name = part_name(job.identities, catalogue)
            patches, entries = part_files(work, name)
            patches.take(temporary)
        with scratch(work, f"{shard.name}.images") as temporary:
            with rows_to(temporary, IMAGES, part_metadata(job.identities, shard)) as write:
                write(catalogue)
            entries.take(temporary)
    finally:
        pool.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)
    return name


def share_arenas() -> None:
    """Let the threads of this process share two heaps of glibc's malloc.

    By default each gets its own, and photographs of many sizes leave holes in all of them: the peak
    then grows with the number of photographs. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
