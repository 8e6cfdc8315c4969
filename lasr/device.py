"""The device that networks run on, its precision, work beside it, and the machine's memory."""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, WithJsonSchema

from lasr.errors import UserError
from lasr.system.calls import keep_freed_memory, physical_memory

if TYPE_CHECKING:
    import torch

_DEVICE = r"auto|cpu|cuda|cuda:[0-9]{1,3}|mps"
_CHOICES = ["auto", "cpu", "cuda", "cuda:N", "mps"]


def _check_device(text: str) -> str:
    if not re.fullmatch(_DEVICE, text):
        raise ValueError(f"choose from {', '.join(_CHOICES)}")
    return text


# What a device is called; a number counts PyTorch's GPUs from 0.
Device = Annotated[
    str,
    AfterValidator(_check_device),
    Field(examples=_CHOICES),
    WithJsonSchema({"type": "string", "pattern": f"^({_DEVICE})$"}),
]
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
Item = TypeVar("Item")
UNKNOWN_MEMORY = 8 * 2**30  # bytes, where the system does not say
# Operators that Apple's GPUs lack run on the CPU. PyTorch reads this when it is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def pick_device(wanted: Device) -> torch.device:
    """The device to use; `auto` is a GPU if PyTorch sees one: CUDA's, or else Apple's (MPS).

    `cuda:1` becomes the current GPU. Raises UserError: PyTorch sees no such device.
    """
    import torch

    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                "--device mps: PyTorch sees no GPU of Apple here",
                "it takes macOS 14 on Apple silicon; or use --device cpu",
            )
        return torch.device("mps")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {wanted}: PyTorch sees no GPU here",
            "check `nvidia-smi` and the installed PyTorch build, or use --device cpu",
        )
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if wanted in ("auto", "cuda"):
        return torch.device("cuda")
    device, count = torch.device(wanted), torch.cuda.device_count()
    if device.index >= count:
        raise UserError(
            f"--device {wanted}: PyTorch sees {count} GPU{'s' if count > 1 else ''} here",
            f"use cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}",
        )
    torch.cuda.set_device(device)  # for whatever only says "cuda": events, streams, pinned memory
    return device


def expect_equal_steps(device: torch.device) -> None:
    """Prepare this process for steps of equal shapes, each of which needs what the last one freed.

    On a GPU cuDNN picks its algorithms by trying them. On a CPU memory is kept between steps, which
    saves a quarter of a step (docs/benchmarks.md).
    """
    import torch

    torch.backends.cudnn.benchmark = True
    if device.type == "cpu":
        keep_freed_memory()


def is_surely_cpu(wanted: Device) -> bool:
    """Whether `pick_device` gives the CPU, as far as can be told without loading PyTorch.

    On Linux a GPU that programs can use has a file in /dev: NVIDIA's, also in WSL and on Jetson,
    or AMD's.
    """
    names = ("nvidiactl", "nvidia0", "nvmap", "dxg", "kfd")
    is_bare = sys.platform == "linux" and not any(Path("/dev", name).exists() for name in names)
    return wanted == "cpu" or (wanted == "auto" and is_bare)


def device_name(device: torch.device) -> str:
    """The GPU's name, CPU or MPS: to note beside a score or a time."""
    import torch

    if device.type == "mps":
        return "Apple GPU (MPS)"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def machine_memory() -> int:
    """Bytes of the machine's memory, or of the container's limit, whichever is less."""
    total = physical_memory() or UNKNOWN_MEMORY
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(limit).read_text("utf-8")))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return total


def pick_precision(wanted: Precision, device: torch.device, old_gpu: Precision) -> Precision:
    """The precision to use: `auto` is bfloat16 on CUDA's GPUs that compute in it, else float32.

    old_gpu: what `auto` is on one of CUDA's without bfloat16. Raises UserError: tf32 elsewhere.
    """
    import torch

    if device.type != "cuda":
        if wanted == "tf32":
            raise UserError(
                "--precision tf32: only GPUs of NVIDIA compute in it", "use float32 here"
            )
        return "float32" if wanted == "auto" else wanted
    if wanted != "auto":
        return wanted
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else old_gpu


def half_of(precision: Precision) -> torch.dtype | None:
    """The type of half precision, None in float32 and TF32."""
    import torch

    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which networks compute in `precision`, and in float32 what needs it.

    For this whole process it also sets whether float32 products on a GPU may be TF32, whose
    mantissa has 10 of 23 bits: PyTorch's default allows it for convolutions only.
    """
    import torch

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    half = half_of(precision)
    # Without the cache: it would outlive a CUDA graph's tensors.
    return torch.autocast(
        device.type, half or torch.bfloat16, enabled=half is not None, cache_enabled=False
    )


@contextmanager
def ahead(stream: Iterable[Item], limit: int) -> Iterator[Iterator[Item]]:
    """The items of a stream, computed by a thread at most `limit` items ahead of their use.

        with ahead(strips, 1) as computed:
            write(computed)

    Its error is raised where its item would have come. Leaving the context ends the stream.
    """
    done = object()
    items: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(limit)
    left = threading.Event()

    def put(item: object, error: BaseException | None = None) -> bool:
        while not left.is_set():
            with suppress(queue.Full):
                items.put((item, error), timeout=0.1)
                return True
        return False

    def compute() -> None:
        source = iter(stream)
        try:
            while put(next(source)):
                pass
        except StopIteration:
            put(done)
        except BaseException as error:
            put(done, error)
        finally:
            if close := getattr(source, "close", None):
                close()

    def use() -> Iterator[Item]:
        while True:
            item, error = items.get()
            if error:
                raise error
            if item is done:
                return
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=compute, name="ahead", daemon=True)
    thread.start()
    try:
        yield use()
    finally:
        left.set()
        thread.join()
