"""The processes of a run, and what they exchange.

Gradients are averaged by plain all-reduces and not by DistributedDataParallel, which regroups its
buckets after the first backward pass of a process: a resumed run would add in another order than an
uninterrupted one. Here the order never changes. The gradients of the encoders, 96 % of all bytes,
are reduced while those of the SR network are still computed (see trainer/step.py).

Every rank computes the loss of the global batch from gathered features, so the mean over ranks of
the parameters' gradients is the gradient of that loss.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lasr.errors import UserError

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20  # gradients that are reduced together


KNOWN_TO_ALL = "known to all ranks"  # a note on an exception: its text names the rank already


class ReportedElsewhere(UserError):
    """Ends a rank whose error another rank prints, so that the user reads it once."""


@dataclass(frozen=True)
class World:
    """The processes of a run: those that `torchrun` started, or a single one."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def exchange(self, value: T) -> list[T]:
        """The values of all ranks, in the order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank and return this rank's result.

        Raises UserError on all ranks where one rank raises it. Rank 0 reports it; the others raise
        ReportedElsewhere.
        """
        results: list[T] = []
        error: UserError | None = None
        try:
            results.append(action())
        except UserError as caught:
            error = caught
        texts = self.exchange((error.problem, error.fix) if error else None)
        for rank, text in enumerate(texts):
            if text and not self.is_main:
                raise ReportedElsewhere(*text)
            if text:
                said = error or UserError(f"rank {rank}: {text[0]}", text[1])
                if self.size > 1:
                    said.add_note(KNOWN_TO_ALL)
                raise said
        return results[0]

    def on_rank_zero(self, action: Callable[[], object]) -> None:
        """Run `action` on rank 0 while the others wait. Raises UserError as `on_all_ranks`."""
        self.on_all_ranks(lambda: action() if self.is_main else None)

    def gather(self, features: Tensor) -> Tensor:
        """The rows of all ranks, in the order of rank: (n, c) to (size * n, c). Differentiable."""
        if self.size == 1:
            return features
        gathered: Tensor = _Gather.apply(features, self)
        return gathered

    def average(self, numbers: Tensor) -> Tensor:
        """The mean over ranks of a detached tensor, the same on every rank."""
        if self.size > 1:
            dist.all_reduce(numbers)
            numbers /= self.size
        return numbers

    def average_gradients(self, parameters: Iterable[Tensor]) -> Callable[[], None]:
        """Start to average `.grad` over ranks; call the result to wait until it is done."""
        if self.size == 1:
            return lambda: None
        gradients = [p.grad for p in parameters if p.grad is not None]
        started: list[tuple[list[Tensor], Tensor, Any]] = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            started.append((bucket, flat, dist.all_reduce(flat, async_op=True)))

        def finish() -> None:
            for bucket, flat, work in started:
                work.wait()
                pieces = (flat / self.size).split([gradient.numel() for gradient in bucket])
                for gradient, piece in zip(bucket, pieces, strict=True):
                    gradient.copy_(piece.view_as(gradient))

        return finish


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, world: World) -> Tensor:
        ctx.world = world
        rows = [torch.empty_like(features) for _ in range(world.size)]
        dist.all_gather(rows, features.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        # No communication: every rank has the same loss, hence the same gradient. Multiplied by the
        # number of ranks, because the gradients of the parameters are averaged over ranks.
        return gradient.chunk(ctx.world.size)[ctx.world.rank] * ctx.world.size, None


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        bucket.append(gradient)
        size += gradient.nbytes
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
