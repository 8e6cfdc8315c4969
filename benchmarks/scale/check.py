"""The simulation against the code's own threads and queues, with stages that sleep.

A stage that sleeps takes the same time on a machine that is busy with other work, so that what is
measured is what waits for what: `bounded_map`, `ahead` and the pools are those of a build.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict

from benchmarks.scale.simulation import BATCH, Costs, Machine, seconds
from lasr.device import ahead
from pipeline.build.batches import bounded_map

STAGES = ("read", "depth", "crop", "captions", "write", "latency")
CASES = {
    "GPU: depth takes longest": (Costs(0.02, 0.06, 0.02, 0.02, 0.01), Machine(8, 8)),
    "GPU: threads take longest": (Costs(0.20, 0.01, 0.10, 0.01, 0.01), Machine(4, 8)),
    "GPU: cores take longest": (Costs(0.20, 0.01, 0.10, 0.01, 0.01), Machine(16, 3)),
    "GPU: storage is far, 8 threads": (Costs(0.01, 0.01, 0.01, 0.01, 0.01, 0.3), Machine(8, 8)),
    "GPU: storage is far, 32 threads": (Costs(0.01, 0.01, 0.01, 0.01, 0.01, 0.3), Machine(32, 8)),
    "GPU: writing takes longest": (Costs(0.02, 0.01, 0.02, 0.01, 0.06), Machine(8, 8)),
    "CPU: two cores": (Costs(0.02, 0.02, 0.06, 0.12, 0.02), Machine(2, 2, gpu=False)),
    "CPU: eight cores": (Costs(0.05, 0.02, 0.20, 0.03, 0.02), Machine(8, 8, gpu=False)),
}


def measured(costs: Costs, machine: Machine, photographs: int) -> float:
    """The seconds that the code's own threads and queues take with stages that sleep."""
    cores, gpu = threading.Semaphore(machine.cores), threading.Semaphore(1)
    network = gpu if machine.gpu else cores
    pool, writer = ThreadPoolExecutor(machine.threads), ThreadPoolExecutor(1)

    def work(where: threading.Semaphore, amount: float) -> None:
        if amount:
            with where:
                time.sleep(amount)

    def read(number: int) -> int:
        time.sleep(costs.latency)
        work(cores, costs.read)
        return number

    def crop(number: int) -> int:
        work(cores, costs.crop)
        return number

    def write(number: int) -> int:
        work(cores, costs.write)
        return number

    def estimate(stream: Iterable[int]) -> Iterator[int]:
        for number in stream:
            work(network, costs.depth)
            yield number

    def captions(stream: Iterable[int]) -> Iterator[int]:
        waiting: list[int] = []
        each = BATCH // costs.patches
        for number in stream:
            waiting.append(number)
            if len(waiting) == each:
                work(network, costs.captions * each)
                yield from waiting
                waiting.clear()
        work(network, costs.captions * len(waiting))
        yield from waiting

    limit, start = machine.threads + 2, time.perf_counter()
    with pool, writer:
        estimated = estimate(bounded_map(pool, read, range(photographs), limit))
        with ahead(estimated, 2) if machine.gpu else nullcontext(estimated) as stream:
            rows = captions(bounded_map(pool, crop, stream, limit))
            done = list(bounded_map(writer, write, rows, limit=2))
    assert done == list(range(photographs))
    return time.perf_counter() - start


def compare(photographs: int, slower: float) -> Iterator[tuple[str, float, float]]:
    """(case, measured, simulated) in seconds. slower: a factor of all stages.

    Threads wake late on a busy machine: the longer they sleep, the less that matters.
    """
    for name, (costs, machine) in CASES.items():
        slow = Costs(**asdict(costs) | {name: slower * getattr(costs, name) for name in STAGES})
        yield name, measured(slow, machine, photographs), seconds(slow, machine, photographs)
