"""Streams of photographs through the networks: in batches, in order, a bounded number at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lasr.errors import is_out_of_memory
from pipeline.build.models import Models
from pipeline.build.workers import Cropped, Decoded, Estimated, failed
from pipeline.stages.rows import captioned
from schemas.manifest import Row

MAX_WAITING = 24  # batches of photographs that wait for one of a shape that seldom comes

Item = TypeVar("Item")
Result = TypeVar("Result")


def bounded_map(
    executor: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    stream: Iterable[Item],
    limit: int,
) -> Iterator[Result]:
    """`map` in threads, in order, at most `limit` items ahead of the consumer."""
    waiting: deque[Future[Result]] = deque()
    for item in stream:
        waiting.append(executor.submit(function, item))
        if len(waiting) > limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass
class _Pending:
    """An item of the queue before the depth estimator; `item` is replaced by its result."""

    item: Decoded | Estimated | Cropped

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the prepared photograph; None if it needs no estimate."""
        return self.item.prepared.shape if isinstance(self.item, Decoded) else None


def estimate(
    stream: Iterable[Decoded | Estimated | Cropped], models: Models
) -> Iterator[Estimated | Cropped]:
    """Estimate distance maps: photographs of one prepared shape share a call of the network."""
    queue: deque[_Pending] = deque()

    def release(limit: int) -> Iterator[Estimated | Cropped]:
        """Yield finished items from the head; force the head while over `limit` items wait."""
        while queue:
            if (shape := queue[0].shape) and len(queue) > limit:
                _estimate_batch([one for one in queue if one.shape == shape], models)
            if isinstance(queue[0].item, Decoded):
                return
            yield queue.popleft().item  # type: ignore[misc]

    for item in stream:
        queue.append(_Pending(item))
        if shape := queue[-1].shape:
            alike = [one for one in queue if one.shape == shape]
            if len(alike) == models.depth.batch_of(shape):
                _estimate_batch(alike, models)
            yield from release(MAX_WAITING * models.depth.batch)
        else:
            yield from release(len(queue))
    yield from release(0)


def _estimate_batch(pending: list[_Pending], models: Models) -> None:
    waiting = [one.item for one in pending if isinstance(one.item, Decoded)]
    maps: list[np.ndarray | Exception] = []
    with suppress(Exception):  # only those of the batch that fail by themselves are lost
        maps += models.depth.predict_some([item.prepared for item in waiting])
    # Outside the context: the traceback there keeps the batch in the device's memory.
    if not maps:
        maps = [_estimate_alone(item, models) for item in waiting]
    for one, item, distance in zip(pending, waiting, maps, strict=True):
        if isinstance(distance, Exception):
            one.item = failed("depth", item.photograph.found, distance, item.photograph)
        else:
            one.item = Estimated(item.photograph, distance, from_cache=False)


def _estimate_alone(item: Decoded, models: Models) -> np.ndarray | Exception:
    for predict in (models.depth.predict_some, models.depth.predict):  # padded; truly alone
        try:
            return predict([item.prepared])[0]
        except Exception as error:
            failure = error
        if not is_out_of_memory(failure):
            break
    return failure


def add_captions(
    stream: Iterable[Cropped], models: Models, on_features: Callable[[Cropped], object]
) -> Iterator[tuple[Row, list[Row]]]:
    """Yield catalogue rows with complete manifest rows: patches of many photographs share a call.

    on_features(item) is called for each photograph whose features are new and complete.
    """
    queue: deque[Cropped] = deque()
    waiting: deque[tuple[Cropped, str]] = deque()  # patches without features, in order

    def encode(number: int) -> None:
        some = [waiting.popleft() for _ in range(number)]
        features = models.captioner.features([item.prepared[name] for item, name in some])
        for (item, name), feature in zip(some, features, strict=True):
            item.features[name] = feature
            del item.prepared[name]
            if not item.prepared:
                on_features(item)

    def release() -> Iterator[tuple[Row, list[Row]]]:
        while queue and not queue[0].prepared:
            yield _with_captions(queue.popleft(), models)

    for item in stream:
        queue.append(item)
        waiting.extend((item, name) for name in item.prepared)
        while waiting and len(waiting) >= models.captioner.batch:
            encode(models.captioner.batch)
        yield from release()
    if waiting:
        encode(len(waiting))
    yield from release()


def _with_captions(item: Cropped, models: Models) -> tuple[Row, list[Row]]:
    if not item.rows:
        return item.entry, []
    features = np.stack([item.features[row["patch_id"]] for row in item.rows])
    captions = models.captioner.rank(features)
    model = models.clip_weights.identity
    return item.entry, [
        captioned(row, caption, model) for row, caption in zip(item.rows, captions, strict=True)
    ]
