"""Stopping on request, with time to write a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether somebody asked the run to stop."""

    asked = False


@contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM let the step under way finish, so that a checkpoint can be written."""
    stop = Stop()

    def note(number: int, frame: object) -> None:
        if stop.asked:  # asked twice: at once
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
