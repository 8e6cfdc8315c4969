"""Batches prepared ahead, and transfers between host and device that neither waits for."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=Any)  # a dataclass with the tensors `lr` and `hr`


class Source(Protocol):
    """Where batches come from: patches of a manifest, or crops of photographs."""

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Any:
        """The batch of a step (from 0), or the slice of it that belongs to `rank` of `world`."""

    def batches(
        self, start: int, stop: int, size: int, workers: int, rank: int = 0, world: int = 1
    ) -> Iterator[Any]:
        """`batch` for the steps start to stop - 1, in order, prepared ahead by threads."""

    def named(self, batch: Any) -> str:
        """What a batch consists of, for an error."""

    def described(self, batch: Any) -> dict[str, list[dict[str, Any]]]:
        """What a batch consists of, for nonfinite.json."""


def ahead(
    make: Callable[[int], Batch], start: int, stop: int, workers: int, most: int
) -> Iterator[Batch]:
    """`make(step)` for the steps start to stop - 1, in order, at most `most` steps ahead.

    Threads and not processes, because reading and decoding release the GIL, memory is shared, and a
    kill leaves no process behind.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="patches") as executor:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(start, stop):
                waiting.append(executor.submit(make, step))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def prefetch(
    batches: Iterator[Batch], texts_of: Callable[[Batch], Tensor], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the tokens of its texts, prepared by a thread while the last one is used.

    For a GPU the tensors are in pinned memory, from which copies to the device are asynchronous.
    """
    pin: Callable[[Tensor], Tensor] = Tensor.pin_memory if device.type == "cuda" else _unchanged

    def prepare() -> tuple[Batch, Tensor] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        pinned = dataclasses.replace(batch, lr=pin(batch.lr), hr=pin(batch.hr))
        return pinned, pin(texts_of(batch))

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as executor:
        future = executor.submit(prepare)
        while (prepared := future.result()) is not None:
            future = executor.submit(prepare)
            yield prepared


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


class AsyncNumbers:
    """A copy of numbers from the device to the host, started at once."""

    def __init__(self, numbers: Tensor):
        self._numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory
        self._copied = torch.cuda.Event() if numbers.is_cuda else None
        if self._copied:
            self._copied.record()

    def read(self) -> list[float]:
        """Wait for this copy, and for nothing the device was given later; return the numbers."""
        if self._copied:
            self._copied.synchronize()
        values: list[float] = self._numbers.tolist()
        return values
