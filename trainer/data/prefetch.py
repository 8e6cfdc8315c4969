"""Between host and device without waiting: batches are made ready ahead, numbers arrive behind."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from trainer.data.dataset import Batch


def feed(
    batches: Iterator[Batch], texts_of: Callable[[Batch], Tensor], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the tokens of its texts, made ready while the step before it is launched.

    For a GPU they stand in pinned memory, from where it fetches them by itself.
    """
    pin: Callable[[Tensor], Tensor] = Tensor.pin_memory if device.type == "cuda" else _as_it_is

    def ready() -> tuple[Batch, Tensor] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        pinned = dataclasses.replace(batch, lr=pin(batch.lr), hr=pin(batch.hr))
        return pinned, pin(texts_of(batch))

    with ThreadPoolExecutor(1, thread_name_prefix="feed") as executor:
        ahead = executor.submit(ready)
        while (found := ahead.result()) is not None:
            ahead = executor.submit(ready)
            yield found


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class Arriving:
    """Numbers on their way from the device to the host; `read` waits for them and nothing later."""

    def __init__(self, numbers: Tensor):
        self._numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory
        self._sent = torch.cuda.Event() if numbers.is_cuda else None
        if self._sent:
            self._sent.record()

    def read(self) -> list[float]:
        """The numbers, in float64 as Python has them."""
        if self._sent:
            self._sent.synchronize()
        values: list[float] = self._numbers.tolist()
        return values
