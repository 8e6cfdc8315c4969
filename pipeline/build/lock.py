"""One build of a manifest at a time: a second one fails at once and says who holds the lock.

On a local disk this is `lasr.lock` on the work folder. Object storage has no locks: there the file
`lock` itself says who the holder is, and the `lock` of a build that died on another machine stays.
The error then says how to go on.
"""

import contextlib
from collections.abc import Iterator

from lasr import lock
from lasr.lock import HOLDER, LOCK
from pipeline.storage import StoragePath, reported

__all__ = ["HOLDER", "LOCK", "check_free", "sole_build"]

_DOING = "being built"


@contextlib.contextmanager
def sole_build(work: StoragePath) -> Iterator[None]:
    """Hold the work folder of a manifest. Raises UserError: another build holds it."""
    with contextlib.ExitStack() as stack:
        if work.is_local:
            with reported(work, "written"):
                stack.enter_context(lock.sole_writer(work.path, _DOING))
        else:
            stack.enter_context(_in_object_storage(work))
        yield


def check_free(work: StoragePath) -> None:
    """Raise UserError if a build holds the work folder; changes nothing."""
    if not work.is_local:
        _check_object_storage(work, b"")
    else:
        with reported(work, "written"):
            lock.check_free(work.path, _DOING)


@contextlib.contextmanager
def _in_object_storage(work: StoragePath) -> Iterator[None]:
    file, content = work / LOCK, lock.this_process()
    _check_object_storage(work, content)
    file.write_bytes(content)
    # Two builds may have started at the same moment: the last one to write holds the lock.
    _check_object_storage(work, content)
    try:
        yield
    finally:
        file.remove()


def _check_object_storage(work: StoragePath, own: bytes) -> None:
    """Raise UserError if the lock names another build that may be alive."""
    file = work / LOCK
    with reported(file, "read"):
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return
    if content and content != own and not lock.is_dead(content):
        advice = f"; if that build died, remove {file}"
        raise lock.held(str(work), _DOING, content, advice)
