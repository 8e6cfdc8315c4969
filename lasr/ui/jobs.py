"""Long work, one job at a time, in the order of asking; and errors as the page shows them."""

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from lasr.errors import UserError, is_out_of_memory, note_traceback, of_machine, one_line, printable

log = logging.getLogger(__name__)

MOST = 8  # jobs that wait
KEPT = 64  # jobs that are remembered
LEFT = 180.0  # seconds after which the page has left: hidden pages ask once a minute
Answer = dict[str, Any]


class Stopped(Exception):
    """Raised inside a job whose page has stopped it or left."""


@dataclass
class Job:
    """A piece of work. Its state is read by the page while a thread works on it."""

    work: Callable[["Job"], Answer]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: Literal["waiting", "running", "done", "failed", "stopped"] = "waiting"
    share: float = 0.0  # of the work that is done, 0..1
    answer: Answer = field(default_factory=dict)
    asked: float = field(default_factory=time.monotonic)  # when the page last asked
    began: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def progress(self, share: float) -> None:
        """Note how much is done. Raises Stopped if nobody waits for the rest."""
        self.share = share
        if self.stop.is_set() or time.monotonic() - self.asked > LEFT:
            raise Stopped


class Queue:
    """Runs jobs one after the other, in a thread."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def check_room(self) -> None:
        """Raise UserError if too many jobs wait already."""
        if len(self._waiting) >= MOST:
            raise UserError(f"{MOST} jobs wait already", "try again when one has ended")

    def add(self, work: Callable[[Job], Answer]) -> Job:
        """Let `work` wait for its turn. Raises UserError: too many wait."""
        job = Job(work)
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._jobs[job.id] = job
            while len(self._jobs) > KEPT:
                self._jobs.popitem(last=False)
            self._changed.notify()
        return job

    def look(self, id: str) -> Answer:
        """What the page is told of a job. Raises UserError: there is none of this name."""
        job = self._job(id)
        job.asked = time.monotonic()
        with self._changed:
            ahead = self._waiting.index(job) + 1 if job in self._waiting else 0
        seconds = job.asked - job.began if job.began else 0.0
        return {
            "state": job.state, "share": round(job.share, 4), "ahead": ahead,
            "seconds": round(seconds, 1), **job.answer,
        }  # fmt: skip

    def end(self, id: str) -> None:
        """Stop a job; a running one stops after its tile."""
        self._job(id).stop.set()

    def close(self) -> bool:
        """Stop everything, and wait a little; returns whether nothing runs any more."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify()
        self._thread.join(2)
        return not self._thread.is_alive()

    def _job(self, id: str) -> Job:
        if id not in self._jobs:
            raise UserError("this job is forgotten", "start it again")
        return self._jobs[id]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                job = self._waiting.popleft()
            job.began = time.monotonic()
            try:
                job.progress(0)
                job.state = "running"
                answer = job.work(job)
            except Stopped:
                job.state = "stopped"
            except BaseException as error:
                job.answer, job.state = {"error": said(error)}, "failed"
            else:
                job.answer, job.share, job.state = answer, 1.0, "done"


class Turns:
    """Short work that answers at once: one at a time, and few wait."""

    def __init__(self) -> None:
        self._lock, self._room = threading.Lock(), threading.BoundedSemaphore(MOST)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn. Raises UserError: too many wait."""
        if not self._room.acquire(blocking=False):
            raise UserError(f"{MOST} questions wait already", "try again when one is answered")
        try:
            with self._lock:
                yield
        finally:
            self._room.release()


def said(error: BaseException) -> dict[str, str]:
    """An error as one line: the problem, and how to fix it if that is known."""
    if isinstance(error, UserError):
        return {"problem": printable(error.problem), "fix": printable(error.fix or "")}
    if is_out_of_memory(error):
        return {"problem": "out of memory", "fix": "take a smaller picture, or a smaller --tile"}
    if isinstance(error, ImportError) and error.name:
        problem = f"this needs {error.name}, which is not installed"
        return {"problem": problem, "fix": "run `pip install 'la-sr[ui]'`"}
    if isinstance(error, OSError) and error.strerror:
        return {"problem": printable(str(of_machine(error))), "fix": ""}
    note_traceback(log, error)
    problem = f"unexpected {type(error).__name__}: {one_line(error)}"
    return {"problem": problem, "fix": "start `lasr ui --debug` for the traceback, and report it"}
