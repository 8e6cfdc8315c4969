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

    uses: the step at which each row group is needed first, and its number, in the order of steps.
    fetch: brings one to the disk. size: its bytes, 0: it is not fetched. most: bytes that are
    fetched ahead of the step that was last reached.
    """

    def __init__(
        self,
        uses: Iterator[tuple[int, int]],
        fetch: Callable[[int], None],
        size: Callable[[int], int],
        most: int,
    ):
        self._uses, self._fetch, self._size, self._most = uses, fetch, size, most
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
            while self._ahead and next(iter(self._ahead)) <= step:
                self._ahead.popitem(last=False)
            self._changed.notify_all()

    def _plan(self) -> None:
        for step, number in self._uses:
            size = self._size(number)
            if not size:
                continue
            with self._changed:
                # One is always allowed, however large it is.
                while not self._closed and self._ahead and self._sum() + size > self._most:
                    self._changed.wait()
                if self._closed:
                    return
                self._ahead[step] = self._ahead.get(step, 0) + size
                self._executor.submit(self._fetch, number).add_done_callback(_note)

    def _sum(self) -> int:
        return sum(self._ahead.values())


def _note(done: Future[None]) -> None:
    """The batch that needs a row group meets its error again, and raises it."""
    if not done.cancelled() and (error := done.exception()):
        level = logging.DEBUG if isinstance(error, UserError) else logging.WARNING
        log.log(level, "reading ahead: %s", one_line(error))


def first_uses(
    chunks_of_steps: Iterable[tuple[int, list[int]]], rows: Callable[[int], int], most: int
) -> Iterator[tuple[int, int]]:
    """When each chunk is needed and not in memory: the step, and the number of the chunk.

    chunks_of_steps: the numbers that each step needs, in order. rows: of a chunk. most: rows that
    stay in memory; the least recently used go first, as in the reader.
    """
    recent: OrderedDict[int, int] = OrderedDict()
    held = 0
    for step, numbers in chunks_of_steps:
        for number in numbers:
            if number not in recent:
                yield step, number
                recent[number] = rows(number)
                held += recent[number]
            recent.move_to_end(number)
            while held > most and len(recent) > 1:
                held -= recent.popitem(last=False)[1]
