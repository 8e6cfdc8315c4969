"""Streams of photographs through the networks, in batches, in order, a bounded number at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.build.workers import Cut, Decoded, Measured, failed
from pipeline.stages.models import Models
from pipeline.stages.rows import captioned
from schemas.manifest import Row

WAITING = 4  # times a batch: photographs of rare sizes may hold up so many others

Tick = Callable[[int], object]
Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    executor: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    stream: Iterable[Item],
    limit: int,
) -> Iterator[Result]:
    """`map` in threads, in order, at most `limit` items ahead of who asks for them."""
    waiting: deque[Future[Result]] = deque()
    for item in stream:
        waiting.append(executor.submit(function, item))
        if len(waiting) > limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass
class _Slot:
    """A photograph's place in the queue before the depth estimator."""

    item: Decoded | Measured | Cut

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the prepared photograph; None once it is measured."""
        return self.item.prepared.shape if isinstance(self.item, Decoded) else None


def measured(
    stream: Iterable[Decoded | Measured | Cut], models: Models
) -> Iterator[Measured | Cut]:
    """Distance maps: photographs of one prepared shape share a call of the network."""
    queue: deque[_Slot] = deque()

    def leave(most: int) -> Iterator[Measured | Cut]:
        """The head of the queue as far as it is measured, and as far as over `most` wait."""
        while queue:
            if (shape := queue[0].shape) and len(queue) > most:
                _measure([slot for slot in queue if slot.shape == shape], models)
            if isinstance(queue[0].item, Decoded):
                return
            yield queue.popleft().item  # type: ignore[misc]

    for item in stream:
        queue.append(_Slot(item))
        if shape := queue[-1].shape:
            alike = [slot for slot in queue if slot.shape == shape]
            if len(alike) == models.depth.batch:
                _measure(alike, models)
            yield from leave(WAITING * models.depth.batch)
        else:
            yield from leave(len(queue))
    yield from leave(0)


def _measure(slots: list[_Slot], models: Models) -> None:
    waiting = [slot.item for slot in slots if isinstance(slot.item, Decoded)]
    try:
        maps: list[np.ndarray | Exception] = list(
            models.depth.predict_some([item.prepared for item in waiting])
        )
    except Exception:  # of several, only those that fail by themselves are lost
        maps = [_alone(item, models) for item in waiting]
    for slot, item, distance in zip(slots, waiting, maps, strict=True):
        if isinstance(distance, Exception):
            slot.item = failed(item.photograph.found, distance, item.photograph)
        else:
            slot.item = Measured(item.photograph, distance, is_kept=False)


def _alone(item: Decoded, models: Models) -> np.ndarray | Exception:
    try:
        return models.depth.predict_some([item.prepared])[0]
    except Exception as error:
        return error


def described(
    stream: Iterable[Cut], models: Models, keep: Callable[[Cut], object]
) -> Iterator[tuple[Row, list[Row]]]:
    """Catalogue rows, and manifest rows with captions: patches of many photographs share a call.

    keep(cut) is told of every photograph whose features are new.
    """
    queue: deque[Cut] = deque()
    waiting: deque[tuple[Cut, str]] = deque()  # patches without features, in order

    def encode(number: int) -> None:
        some = [waiting.popleft() for _ in range(number)]
        features = models.captioner.features([cut.prepared[name] for cut, name in some])
        for (cut, name), feature in zip(some, features, strict=True):
            cut.features[name] = feature
            del cut.prepared[name]
            if not cut.prepared:
                keep(cut)

    def leave() -> Iterator[tuple[Row, list[Row]]]:
        while queue and not queue[0].prepared:
            yield _with_captions(queue.popleft(), models)

    for cut in stream:
        queue.append(cut)
        waiting.extend((cut, name) for name in cut.prepared)
        while waiting and len(waiting) >= models.captioner.batch:
            encode(models.captioner.batch)
        yield from leave()
    if waiting:
        encode(len(waiting))
    yield from leave()


def _with_captions(cut: Cut, models: Models) -> tuple[Row, list[Row]]:
    if not cut.rows:
        return cut.entry, []
    features = np.stack([cut.features[row["patch_id"]] for row in cut.rows])
    captions = models.captioner.rank(features)
    model = models.clip_located.identity
    return cut.entry, [
        captioned(row, caption, model) for row, caption in zip(cut.rows, captions, strict=True)
    ]
