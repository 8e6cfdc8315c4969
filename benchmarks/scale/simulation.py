"""A build of one machine as discrete events: threads, cores, networks and storage.

The stages and the numbers of photographs that wait between them are those of
`pipeline.build.shard.build_shard`: threads read ahead, the depth network runs in a thread of its
own where there is a GPU, the main thread asks CLIP for the patches of several photographs at once,
and one thread writes.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

BATCH = 64  # patches of a call of CLIP


@dataclass(frozen=True)
class Costs:
    """Seconds of one photograph in each stage. latency: waiting for storage, without a core."""

    read: float = 0.0
    depth: float = 0.0
    crop: float = 0.0
    captions: float = 0.0
    write: float = 0.0
    latency: float = 0.0
    patches: int = 16


@dataclass(frozen=True)
class Machine:
    """Where a shard is built. gpu: networks compute there, one call at a time, without a core."""

    threads: int
    cores: int
    gpu: bool = True


class Counter:
    """A number of free places; a process that yields it waits for one, in order of arrival."""

    def __init__(self, free: int = 0) -> None:
        self.free = free
        self.waiting: deque[Process] = deque()


Process = Generator[float | Counter, None, None]


class Clock:
    """Runs processes: they yield seconds to wait, or a Counter to take one of its places."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Process]] = []

    def start(self, process: Process) -> None:
        heapq.heappush(self._events, (self.now, next(self._order), process))

    def give(self, counter: Counter) -> None:
        """Free a place: whoever waits longest goes on."""
        if counter.waiting:
            self.start(counter.waiting.popleft())
        else:
            counter.free += 1

    def run(self) -> float:
        """Run until nothing is left to do; returns the time."""
        while self._events:
            self.now, _, process = heapq.heappop(self._events)
            wanted = next(process, None)
            if isinstance(wanted, Counter):
                if wanted.free:
                    wanted.free -= 1
                    self.start(process)
                else:
                    wanted.waiting.append(process)
            elif wanted is not None:
                heapq.heappush(self._events, (self.now + wanted, next(self._order), process))
        return self.now


def seconds(costs: Costs, machine: Machine, photographs: int) -> float:
    """How long one shard of that many photographs takes."""
    clock = Clock()
    cores, pool = Counter(machine.cores), Counter(machine.threads)
    network = Counter(1) if machine.gpu else cores
    limit = machine.threads + 2  # of `bounded_map` in build_shard
    ready, cropped = [[Counter() for _ in range(photographs)] for _ in range(2)]
    estimated, room = Counter(), Counter(2)  # `lasr.device.ahead`
    written, to_write = Counter(2), Counter()

    def work(where: Counter, amount: float) -> Process:
        if amount:
            yield where
            yield amount
            clock.give(where)

    def in_pool(latency: float, amount: float, done: Counter) -> Process:
        yield pool
        if latency:
            yield latency
        yield from work(cores, amount)
        clock.give(pool)
        clock.give(done)

    def estimate_one(number: int) -> Process:
        """Depth of a photograph, after reading at most `limit` ahead of it."""
        for ahead in range(photographs if number == 0 else 0):
            if ahead > limit:
                break
            clock.start(in_pool(costs.latency, costs.read, ready[ahead]))
        if number and number + limit < photographs:
            clock.start(in_pool(costs.latency, costs.read, ready[number + limit]))
        yield ready[number]
        yield from work(network, costs.depth)

    def depth_thread() -> Process:
        for number in range(photographs):
            yield from estimate_one(number)
            yield room
            clock.give(estimated)

    def next_estimate(number: int) -> Process:
        if machine.gpu:
            yield estimated
            clock.give(room)
        else:
            yield from estimate_one(number)
        clock.start(in_pool(0.0, costs.crop, cropped[number]))

    def main_thread() -> Process:
        asked, patches = 0, 0
        for number in range(photographs):
            while asked < photographs and asked <= number + limit:
                yield from next_estimate(asked)
                asked += 1
            yield cropped[number]
            patches += costs.patches
            last = number == photographs - 1
            while patches >= BATCH or (last and patches > 0):
                called = min(patches, BATCH)
                yield from work(network, costs.captions * called / costs.patches)
                patches -= called
                for _ in range(called // costs.patches):
                    yield written
                    clock.give(to_write)

    def writer() -> Process:
        for _ in range(photographs):
            yield to_write
            yield from work(cores, costs.write)
            clock.give(written)

    if machine.gpu:
        clock.start(depth_thread())
    clock.start(main_thread())
    clock.start(writer())
    return clock.run()
