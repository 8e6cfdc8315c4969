"""One shard of photographs to one part, with all stages at work at the same time.

    threads      read, decode, prepare for the depth network    workers.Worker.read
    main thread  depth network (on a GPU, one of its own)       batches.estimate
    threads      select patches, cut them out, encode as PNG    workers.Worker.crop
    main thread  CLIP, patches of many photographs              batches.add_captions
    one thread   write

Photographs keep their order, and each stage runs a bounded number of them ahead, so memory does not
grow with the shard. The rows of a photograph do not depend on its neighbours, to the last bit: the
networks' batches always have the same size, padded if necessary. So rows are equal however a build
was cut into shards or interrupted.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import cv2
import pyarrow as pa

from lasr.device import ahead
from lasr.system import calls
from pipeline.build.batches import add_captions, bounded_map, estimate
from pipeline.build.cache import Cache
from pipeline.build.models import Job, Models, load_models
from pipeline.build.parts import (
    ReusableRows,
    Shard,
    catalogue_identity,
    keep_part,
    part_metadata,
)
from pipeline.build.workers import Cropped, Estimated, Worker
from pipeline.storage import scratch
from schemas.catalogue import IMAGES
from schemas.manifest import PATCHES, Row
from schemas.parquet import rows_to

M_ARENA_MAX = -8  # of glibc's malloc.h
SHARE = 1 / 3  # of the work on a photograph: distance, captions and writing count alike
Item = TypeVar("Item")


def build_shard(
    job: Job, shard: Shard, on_done: Callable[[float], object] = lambda share: None
) -> str:
    """Make the part of a shard and return its name.

    on_done(share) is called as each photograph is worked on, with shares that sum up to one: where
    its patches are cut out, where they have captions, and where they are written. An ETA from these
    covers all stages, although networks take photographs in batches.

    A photograph that cannot be used is recorded in the catalogue and does not stop the others.
    Raises UserError: weights that cannot be loaded, a folder that cannot be written.
    """
    share_arenas()
    cv2.setNumThreads(1)  # photographs are the unit of parallel work, not rows of pixels
    config, work = job.config, job.config.work
    models = load_models(job)
    cache = Cache(config.cache_folder, job.identities.depth, job.identities.features)
    worker = Worker(config, models, cache, ReusableRows(work, shard.reusable))
    limit = config.workers + 2
    catalogue: list[Row] = []
    pool = ThreadPoolExecutor(config.workers, thread_name_prefix="photographs")
    writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
    cache_writes: list[Future[None]] = []

    def put_features(item: Cropped) -> None:
        image_id = item.entry["image_id"]
        cache_writes.append(pool.submit(cache.put_features, image_id, item.features))

    try:
        with scratch(work, shard.name) as temporary:
            with rows_to(
                temporary, PATCHES, job.metadata, lambda: catalogue_identity(catalogue)
            ) as write:

                def finish(done: tuple[Row, list[Row]]) -> Row:
                    write(done[1])
                    return done[0]

                read = bounded_map(pool, worker.read, shard.photographs, limit)
                with beside_captions(estimate(read, models), models) as estimated:
                    cropped = bounded_map(pool, worker.crop, estimated, limit)
                    rows = add_captions(passing(cropped, on_done), models, put_features)
                    for entry in bounded_map(writer, finish, passing(rows, on_done), limit=2):
                        catalogue.append(entry)
                        on_done(1 - 2 * SHARE)
            for future in cache_writes:
                future.result()
            entries = pa.Table.from_pylist(catalogue, schema=IMAGES)
            return keep_part(work, temporary, entries, part_metadata(job.identities, shard))
    finally:
        pool.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)


def passing(items: Iterable[Item], on_done: Callable[[float], object]) -> Iterator[Item]:
    """The same items; on_done(SHARE) is called for each."""
    for item in items:
        on_done(SHARE)
        yield item


def beside_captions(
    estimates: Iterator[Estimated | Cropped], models: Models
) -> AbstractContextManager[Iterator[Estimated | Cropped]]:
    """Let the depth network run in a thread of its own, where a GPU computes both networks.

    On a CPU the two would share the cores that each of them fills.
    """
    return ahead(estimates, 2) if models.on_gpu else nullcontext(estimates)


def share_arenas() -> None:
    """Let the threads of this process share two heaps of glibc's malloc.

    By default each thread gets its own heap, and photographs of many sizes leave holes in all of
    them: peak memory then grows with the number of photographs. Does nothing without glibc.
    """
    if mallopt := getattr(calls.libc(), "mallopt", None):
        mallopt(M_ARENA_MAX, 2)
