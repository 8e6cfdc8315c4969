"""Training on several devices under `torchrun`: who this process is, and what processes exchange.

Plain all-reduces instead of DistributedDataParallel: it regroups its buckets after the first
backward pass of a process, so that a run carried on would add in another order than one that was
never stopped. Here the order never changes. And the gradients of the encoders, 96 % of all bytes,
travel while those of the SR network are still computed (see trainer/step.py).

Every process computes the loss of the global batch from gathered features, so the average over
processes of the parameters' gradients is the gradient of that loss.
"""

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lasr.device import Device, pick_device
from lasr.errors import UserError

MESSAGE = 64 * 2**20  # bytes of gradients that travel together


class OwnError(UserError):
    """An error that only this process has met: it has to be said here, or nobody says it."""


@dataclass(frozen=True)
class World:
    """The processes of a run, all of them started by `torchrun`, or a single one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def gather(self, features: Tensor) -> Tensor:
        """Rows of all processes in the order of rank, (size * n, c). Differentiates."""
        if self.size == 1:
            return features
        gathered: Tensor = _Gather.apply(features, self)
        return gathered

    def average(self, numbers: Tensor) -> Tensor:
        """The mean over processes of a detached tensor, the same everywhere."""
        if self.size > 1:
            dist.all_reduce(numbers)
            numbers /= self.size
        return numbers

    def average_gradients(self, parameters: Iterable[Tensor]) -> Callable[[], None]:
        """Begin to average `.grad` over processes; calling the answer waits for the end of it."""
        if self.size == 1:
            return lambda: None
        gradients = [p.grad for p in parameters if p.grad is not None]
        sent: list[tuple[list[Tensor], Tensor, Any]] = []
        for together in _messages(gradients):
            flat = torch.cat([gradient.flatten() for gradient in together])
            sent.append((together, flat, dist.all_reduce(flat, async_op=True)))

        def finish() -> None:
            for together, flat, work in sent:
                work.wait()
                pieces = (flat / self.size).split([gradient.numel() for gradient in together])
                for gradient, piece in zip(together, pieces, strict=True):
                    gradient.copy_(piece.view_as(gradient))

        return finish

    def by_first(self, action: Callable[[], None]) -> None:
        """Do something in the first process; all wait, and all raise the UserError it raises."""
        told: list[str | None] = [None]
        if self.first:
            try:
                action()
            except UserError as error:
                if self.size == 1:
                    raise
                told = [str(error)]
        if self.size > 1:
            dist.broadcast_object_list(told)
            if told[0] is not None:
                raise UserError(told[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, world: World) -> Tensor:
        ctx.world = world
        rows = [torch.empty_like(features) for _ in range(world.size)]
        dist.all_gather(rows, features.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        # Nothing needs to travel: all processes hold the same loss, hence the same gradient. Times
        # the number of processes, because the parameters' gradients are averaged.
        return gradient.chunk(ctx.world.size)[ctx.world.rank] * ctx.world.size, None


def _messages(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    together: list[Tensor] = []
    size = 0
    for gradient in gradients:
        together.append(gradient)
        size += gradient.nbytes
        if size >= MESSAGE:
            yield together
            together, size = [], 0
    if together:
        yield together


def launched() -> World:
    """This process's place as `torchrun` told it by environment variables."""
    return World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def joined(wanted: Device) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes (NCCL on GPUs, Gloo on CPUs); yields them and the device to use.

    Raises UserError: fewer GPUs than processes, or another process has gone.
    """
    world, device = launched(), pick_device(wanted)
    if world.size == 1:
        yield world, device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local + 1} of this machine has no GPU of its own, there are"
                f" {torch.cuda.device_count()}; lower --nproc-per-node or take --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Long enough for one process to write a checkpoint while the others wait.
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
    try:
        yield world, device
    except RuntimeError as error:
        if "onnection" in str(error) or isinstance(error, dist.DistBackendError):
            raise UserError("another process of this run has ended; see what it said") from error
        raise
    finally:
        dist.destroy_process_group()
