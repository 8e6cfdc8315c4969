"""Transfers between host and device that neither waits for."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from trainer.data.dataset import Batch


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
