"""The device that networks run on, its precision, work beside it, and the machine's memory."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from lasr.errors import UserError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
Item = TypeVar("Item")


def pick_device(wanted: Device) -> torch.device:
    """The device to use; `auto` is a GPU if PyTorch sees one.

    Raises UserError: `cuda`, and PyTorch sees no GPU.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch sees no GPU here",
            "check `nvidia-smi` and the installed PyTorch build, or use --device cpu",
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or CPU: to note beside a score or a time."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def machine_memory() -> int:
    """Bytes of the machine's memory, or of the container's limit, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return total


def pick_precision(wanted: Precision, device: torch.device, old_gpu: Precision) -> Precision:
    """The precision to use: `auto` is bfloat16 on a GPU that computes in it, and float32 on a CPU.

    old_gpu: what `auto` is on a GPU without bfloat16. Raises UserError: tf32 on a CPU.
    """
    import torch

    if device.type == "cpu":
        if wanted == "tf32":
            raise UserError("--precision tf32: only GPUs compute in it", "use float32 on a CPU")
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
