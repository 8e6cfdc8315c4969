"""Row groups of a manifest in storage, fetched to the local disk before a batch needs them.

The order of batches depends on seed and step alone, so it is known which row groups come next. What
is fetched, when and how often changes no batch.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from lasr.errors import UserError, one_line

log = logging.getLogger(__name__)

THREADS = 8  # row groups at once; each is one large request


class ReadAhead:
    """Fetches in threads of its own; a context manager.

    uses: each step with the numbers of the row groups that it needs first. fetch: brings one to the
    disk. size: its bytes, 0: it is not fetched. most: bytes that are fetched ahead of the step that
    was last reached. steps: so far ahead of it, at most.
    """

    def __init__(
        self,
        uses: Iterator[tuple[int, list[int]]],
        fetch: Callable[[int], None],
        size: Callable[[int], int],
        most: int,
        steps: int,
    ):
        self._uses, self._fetch, self._size = uses, fetch, size
        self._most, self._steps = most, steps
        self._reached: int | None = None
        self._ahead: OrderedDict[int, int] = OrderedDict()  # bytes by step, not reached yet
        self._changed = threading.Condition()
        self._closed = False
        self._planner = threading.Thread(target=self._plan, name="read ahead", daemon=True)
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="read ahead")

    def __enter__(self) -> "ReadAhead":
        self._planner.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._planner.join()
        self._executor.shutdown(cancel_futures=True)

    def reached(self, step: int) -> None:
        """Say that the batch of a step is being made: what it needs is no longer ahead."""
        with self._changed:
            self._reached = max(step, self._reached or step)
            while self._ahead and next(iter(self._ahead)) <= step:
                self._ahead.popitem(last=False)
            self._changed.notify_all()

    def _plan(self) -> None:
        for step, numbers in self._uses:
            for size, number in [(0, 0), *((self._size(each), each) for each in numbers)]:
                if not self._may_go_on(step, size):
                    return
                if size:
                    self._executor.submit(self._fetch, number).add_done_callback(_note)

    def _may_go_on(self, step: int, size: int) -> bool:
        """Wait until `size` bytes may be fetched for a step; False: it was closed meanwhile."""
        with self._changed:
            if self._reached is None:
                self._reached = step
            while not self._closed and self._is_far(step, size):
                self._changed.wait()
            self._ahead[step] = self._ahead.get(step, 0) + size
            return not self._closed

    def _is_far(self, step: int, size: int) -> bool:
        """Whether it is too early; one row group is always allowed, however large it is."""
        assert self._reached is not None
        held = sum(self._ahead.values())
        return step > self._reached + self._steps or (held > 0 and held + size > self._most)


def _note(done: Future[None]) -> None:
    """The batch that needs a row group meets its error again, and raises it."""
    if not done.cancelled() and (error := done.exception()):
        level = logging.DEBUG if isinstance(error, UserError) else logging.WARNING
        log.log(level, "reading ahead: %s", one_line(error))


def first_uses(
    chunks_of_steps: Iterable[tuple[int, list[int]]], rows: Callable[[int], int], most: int
) -> Iterator[tuple[int, list[int]]]:
    """Each step, with the numbers of the chunks that it needs and that are not in memory.

    chunks_of_steps: the numbers that each step needs, in order. rows: of a chunk. most: rows that
    stay in memory; the least recently used go first, as in the reader.
    """
    recent: OrderedDict[int, int] = OrderedDict()
    held = 0
    for step, numbers in chunks_of_steps:
        new: list[int] = []
        for number in numbers:
            if number not in recent:
                new.append(number)
                recent[number] = rows(number)
                held += recent[number]
            recent.move_to_end(number)
            while held > most and len(recent) > 1:
                held -= recent.popitem(last=False)[1]
        yield step, new
