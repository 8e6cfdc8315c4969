"""Join the processes of a run, and leave them together."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from lasr.device import Device, pick_device
from lasr.errors import UserError
from trainer.distributed.failure import Failure, open_store
from trainer.distributed.world import World


def world_from_environment() -> World:
    """This process's rank and the number of processes, from the variables that `torchrun` sets."""
    return World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def process_group(wanted: Device) -> Iterator[tuple[World, torch.device]]:
    """Join the process group (NCCL on GPUs, Gloo on CPUs); yield the world and the device to use.

    A process alone raises what its body raises. Of several, the first that fails prints its error
    with its rank, and all end with SystemExit: see `Failure`.
    """
    world = world_from_environment()
    if world.size == 1:
        yield world, pick_device(wanted)
        return
    store = open_store(world)
    with Failure(world) as failure:
        done = False
        try:
            device = _device_of_rank(wanted)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=world.rank,
                world_size=world.size,
                # Long enough for rank 0 to write a checkpoint while the others wait.
                timeout=datetime.timedelta(minutes=30),
            )
            yield world, device
            done = True
        except SystemExit:
            raise
        except BaseException as error:
            # Before the group is left: the others fail as soon as their connections close.
            raise SystemExit(failure.report(error)) from None
        finally:
            failure.leave(done)
            if dist.is_initialized():
                dist.destroy_process_group()


def _device_of_rank(wanted: Device) -> torch.device:
    """The device of this process. Raises UserError: there is no GPU for it."""
    local = int(os.environ.get("LOCAL_RANK", 0))  # rank on this machine
    device = pick_device(wanted)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local + 1} of this machine has no GPU, there are"
                f" {torch.cuda.device_count()}",
                "lower --nproc-per-node or pass --device cpu",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    return device
