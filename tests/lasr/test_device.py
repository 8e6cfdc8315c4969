"""Work ahead of its use, memory between steps, and which precision `auto` is."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from lasr.device import ahead, autocast, pick_device, pick_precision
from lasr.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_items_come_in_order_from_one_other_thread_and_not_too_far_ahead() -> None:
    made: list[int] = []
    threads = set[int]()
    gate = threading.Semaphore(0)

    def stream() -> Iterator[int]:
        for number in range(20):
            threads.add(threading.get_ident())
            made.append(number)
            gate.release()
            yield number

    with ahead(stream(), 2) as items:
        assert next(items) == 0
        for _ in range(4):  # the one in use, two that wait, and the next that found no room
            gate.acquire(timeout=100)
        assert len(made) == 4
        assert list(items) == list(range(1, 20))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def stream() -> Iterator[int]:
        yield 1
        raise UserError("it broke", "repair it")

    with ahead(stream(), 5) as items:
        assert next(items) == 1
        with pytest.raises(UserError, match="it broke"):
            next(items)


def test_leaving_early_ends_the_stream() -> None:
    closed = threading.Event()

    def stream() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), ahead(stream(), 1) as items:
        next(items)
        raise KeyboardInterrupt
    assert closed.is_set() and threading.active_count() == before


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 2, "cuda"),
     ("cuda:1", 2, "cuda:1"), ("mps", 0, "mps")],
)  # fmt: skip
def test_the_device_that_is_asked_for(
    wanted: str, there: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: wanted == "mps")
    assert str(pick_device(wanted)) == expected
    assert current == ([torch.device("cuda:1")] if wanted == "cuda:1" else [])


@pytest.mark.parametrize(
    ("wanted", "there", "message"),
    [("cuda", 0, "sees no GPU"), ("cuda:1", 0, "sees no GPU"), ("mps", 2, "no GPU of Apple"),
     ("cuda:2", 2, "--device cuda:2: PyTorch sees 2 GPUs here; use cuda:0 to cuda:1"),
     ("cuda:1", 1, "sees 1 GPU here; use cuda:0")],
)  # fmt: skip
def test_a_device_that_is_not_there(
    wanted: str, there: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(UserError, match=message):
        pick_device(wanted)


def test_auto_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_precision("auto", CPU, old_gpu="float16") == "float32"
    assert pick_precision("bfloat16", CPU, old_gpu="float16") == "bfloat16"
    with pytest.raises(UserError, match="tf32"):
        pick_precision("tf32", CPU, old_gpu="float16")
    for has, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert pick_precision("auto", GPU, old_gpu="float16") == expected
        assert pick_precision("float32", GPU, old_gpu="float16") == "float32"


def test_products_are_in_the_precision_that_was_asked_for() -> None:
    a, b = torch.rand(2, 4, 4)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(CPU, precision):  # type: ignore[arg-type]
            assert (a @ b).dtype == dtype


# Prints the page faults of a hundred steps that each need 40 MB, after one that is not counted.
STEPS = """
import resource, sys, torch
from lasr.device import expect_equal_steps
if sys.argv[1] == "prepared":
    expect_equal_steps(torch.device("cpu"))
torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that gives memory back")
def test_a_step_takes_the_memory_that_the_last_one_freed() -> None:
    def faults(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", STEPS, how], text=True))

    plain = faults("plain")
    if plain < 900_000:  # of 4 KB each
        pytest.skip("this C library keeps freed memory by itself, or pages are larger")
    # Small blocks are cut from what a step freed, and the heap grows again for the next: one to six
    # times were seen, by chance, and no more of them in more steps.
    assert faults("prepared") < plain / 5
